# Does the host as it is go with the rules? Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts

liberal_switch=/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal

# finding CODE WEIGHT WHAT RULE CURE: something on this host does not go with the rules. `install` warns, or with --strict
# it ends; `host` lists it in one line. WEIGHT is the daemon's word: warning, degraded, unprotected.
finding() {
    if [ "$command" = host ]; then
        printf '%s\t%s\t%s: %s\t%s' "$1" "$2" "$3" "$4" "$5" | tr -s '\n ' ' '
        echo
        return
    fi
    text="$3:
      $4
  $5"
    case ${strict}:$1 in
        :* | *:clones-dropped | *:mangle-accept | *:mark-erased | *:mark-routed) warn "$text" ;; # it can work like that
        *) misuse "$text" ;;
    esac
}

# All rules of a table that can be seen without loading anything: the chosen iptables, and the other kind if in use.
host_rules() { # host_rules TABLE
    ! is_table "$1" "$variant" || "$save" -t "$1" 2>/dev/null
    if [ "$variant" = legacy ]; then
        iptables-nft-save -t "$1" 2>/dev/null
    elif is_table "$1" legacy; then
        iptables-legacy-save -t "$1" 2>/dev/null
    fi
}

# The chains that packets of this host's own traffic can meet, starting from the ones given.
reachable() { # reachable SAVED CHAINS
    IFS=$nl
    found=$2
    grown=yes
    while [ -n "$grown" ]; do
        grown=''
        for line in $1; do
            case $line in "-A "*" -j "* | "-A "*" -g "*) ;; *) continue ;; esac
            from=${line#-A } from=${from%% *} to=${line##* -[jg] } to=${to%% *}
            case $found in *" $from "*) ;; *) continue ;; esac
            case $found in *" $to "*) ;; *) found="$found$to " grown=yes ;; esac
        done
    done
    printf '%s\n' "$found"
}

# The first rule that judges service packets by their connection state, and so misjudges untracked ones. INVALID alone is
# harmless (untracked is not invalid); a rule that names UNTRACKED knows what it does.
stateful_rule() {
    filter=$(host_rules filter)
    chains=$(reachable "$filter" ' INPUT OUTPUT ')
    IFS=$nl
    for line in $filter; do
        case $line in
            "-A "*" --ctstate "*) states=${line#* --ctstate } ;;
            "-A "*" --state "*) states=${line#* --state } ;;
            *) continue ;;
        esac
        from=${line#-A }
        case $chains in *" ${from%% *} "*) ;; *) continue ;; esac
        case ${states%% *} in INVALID | *UNTRACKED*) continue ;; esac
        printf '%s\n' "$line"
        return
    done
    command -v nft >/dev/null || return 0
    skip='' iptables_own=' '
    case $filter in *COMMIT*) iptables_own='table ip filter ' ;; esac # seen above, if iptables could read it
    for line in $(nft -s list ruleset 2>/dev/null); do
        case $line in
            "$iptables_own"*) table=skip ;;
            "table "*) table='' ;;
            *"chain "*" {") skip=$table ;;
            *" hook forward "*) skip=yes ;;
            *untracked* | *"ct state invalid"*) ;;
            *"ct state "*)
                [ -z "$skip" ] || continue
                printf 'nft: %s\n' "${line#"${line%%[! 	]*}"}"
                return
                ;;
        esac
    done
}

# The first rule that gives packets of this host's own programs to the service another address, or leads others here: NAT
# needs connection tracking. (What does so with clients' packets is a forwarded_rule.)
nat_rule() {
    saved=$(host_rules nat)
    case $saved in *" -j DNAT "* | *" -j REDIRECT"* | *" -j NETMAP "*) ;; *) return 0 ;; esac
    IFS=$nl
    kept=$(for line in $saved; do spares "$line " -o -d --dport || printf '%s\n' "$line"; done)
    reached=$(reachable "$kept" ' OUTPUT ')
    for line in $saved; do
        case $line in
            "-A "*" -j DNAT"*" --to-destination $service" | "-A "*" -j DNAT"*" --to-destination $service:"*) ;;
            "-A "*" -j DNAT"* | "-A "*" -j REDIRECT"* | "-A "*" -j NETMAP"*)
                from=${line#-A }
                case $reached in *" ${from%% *} "*) ;; *) continue ;; esac
                ! spares "$line " -o -d --dport || continue
                ;;
            *) continue ;;
        esac
        printf '%s\n' "$line"
        return
    done
}

serves_any() { # serves_any PORTS...: does one of them belong to the service?
    unset IFS
    serves=1
    some=${1%% *},
    while [ -n "$some" ]; do
        one=${some%%,*} some=${some#*,}
        for range in $port_list; do
            if [ "${one%:*}" -le "${range#*:}" ] && [ "${one#*:}" -ge "${range%:*}" ]; then serves=0; fi
        done
    done
    IFS=$nl
    return $serves
}

check_host() { # check_host MANGLE: what does not go with the rules, apart from what ends an installation
    if [ "$conntrack" = notrack ]; then
        found=$(stateful_rule)
        [ -z "$found" ] || finding filter-by-state warning "--conntrack notrack takes the service out of connection \
tracking, but this host filters
  by connection state and may block it" "$found" "Use --conntrack liberal, or accept $service ports $ports before that rule."
        found=''
        [ -n "$forwarded" ] || found=$(nat_rule) # which no tracking would help
        [ -z "$found" ] || finding nat-untracked warning "--conntrack notrack takes the service out of connection \
tracking, so this rule can't work" "$found" "Use --conntrack liberal, or take the rule out."
    fi
    if [ "$tap" = clone ] && [ "$role" != backup ]; then
        case $(host_rules filter) in
            *":OUTPUT DROP"*) finding clones-dropped warning "the filter table drops OUTPUT by default, and clones for \
the backup leave through OUTPUT" ":OUTPUT DROP" "Accept them there: -d $service -p tcp." ;;
        esac
    fi
    IFS=$nl
    for line in $1; do
        case $line in
            "-A PREROUTING "*"-j ACCEPT"*) ! spares "$line " -i -d --dport || continue ;;
            "-A OUTPUT "*"-j ACCEPT"*) ! spares "$line " -o -s --sport || continue ;;
            *) continue ;;
        esac
        # With other conditions it may match some of them, or none.
        weight=unprotected
        case $line in
            *" -m "[!t]* | *" -m t"[!c]* | *" ! "* | "-A PREROUTING"*" -s "* | "-A OUTPUT"*" -d "*) weight=degraded ;;
        esac
        finding mangle-accept $weight "table mangle has ACCEPT rules of its own; service packets that they match \
never reach our rules" "$line" "Let them RETURN, or match other packets."
        break
    done
    check_marks
    unset IFS
}

# What others do with the packet marks of what the service says.
check_marks() {
    others=$(printf '0x%x' $((~mark & 0xffffffff)))
    found=$(iptables_marks && nft_marks "$(nft_rules)")
    IFS=$nl
    for word in 'before erases' 'before sets' 'after erases' 'after sets' 'maybe erases' 'maybe sets'; do
        case $nl$found in *"$nl$word "*) ;; *) continue ;; esac
        rule=${found#*"$word "} rule=${rule%%"$nl"*}
        case $rule in
            "nft: "*) cure="meta mark set meta mark & $mark | VALUE" ;;
            *) cure="--set-xmark VALUE/$others" ;;
        esac
        cure="Let the rule leave our bit alone: $cure."
        case $word in
            'before erases')
                finding mark-erased warning "this rule overwrites the mark of the daemon's packets \
($(describe_own))" "$rule" "$cure"
                ;;
            *' erases')
                weight=unprotected
                [ "$word" = 'after erases' ] || weight=degraded
                [ "$guard" != none ] || weight=warning
                finding mark-erased-late $weight "this rule overwrites the mark of all that the service says, and the \
silence guard drops what has no mark" "$rule" "$cure"
                ;;
            *)
                weight=degraded
                [ "$own_kind" != mark ] || [ "$word" = 'after sets' ] || weight=unprotected
                finding mark-set $weight "this rule gives our mark to what the service says: $(describe_hole)" \
                    "$rule" "$cure"
                ;;
        esac
    done
    for line in $(mark_routes); do
        finding mark-routed warning "this routing rule compares all bits of the mark; what the daemon lets out has one more, \
$mark, and does not match it" "$line" "Give it a mask: fwmark VALUE/$others."
        break
    done
}

describe_own() {
    case $own_kind in
        owner) echo 'our rules put it back' ;;
        *) echo 'they come back to it then: it knows them, but that costs time' ;;
    esac
}

describe_hole() {
    case $own_kind:$word in
        mark:before* | mark:maybe*) echo 'it passes by the daemon, and by the silence guard' ;;
        *) echo 'the silence guard would let a replica be heard' ;;
    esac
}

# Ends an installation that would protect nothing, or nothing that can work.
refuse_host() {
    forwarded=$(forwarded_rule)
    [ -z "$forwarded" ] || misuse "$(forwarded_text):
      $forwarded
  $(forwarded_cure)"
    [ "$conntrack" != liberal ] || [ -e $liberal_switch ] || misuse "--conntrack liberal: connection tracking is not loaded, \
so there is nothing to
  make liberal and no rule that needs it. Use --conntrack notrack, or 'modprobe nf_conntrack' (and at each boot)."
}

forwarded_text() {
    echo "this rule leads the service's packets away from the programs of this host (a published port of a container?), \
and past the daemon"
}

forwarded_cure() {
    echo "Let the container use the host's network (docker run --network host; Compose: network_mode: host), run the \
program on the host, or give it another port. No --conntrack helps."
}

# Make connection tracking liberal, or put it back as it was; liberal_before is the value to restore ('' for none).
liberal_on() {
    [ -n "$liberal_before" ] || liberal_before=$(cat $liberal_switch) || return 1
    echo 1 >$liberal_switch
}

# Other instances may still need it: then one of them inherits the old value.
liberal_off() {
    [ -n "$liberal_before" ] || return 0
    set +f
    for other in "$state_root"/*/state; do
        set -f
        if [ "$other" = "$state_dir/state" ] || [ ! -r "$other" ]; then continue; fi
        case $nl$(cat "$other")$nl in
            *"${nl}era=$era$nl"*"${nl}conntrack=liberal$nl"*)
                [ "$liberal_before" = 1 ] || printf 'liberal_before=%s\n' "$liberal_before" >>"$other"
                liberal_before=''
                return 0
                ;;
        esac
    done
    set -f
    [ ! -e $liberal_switch ] || echo "$liberal_before" >$liberal_switch || return 1
    liberal_before=''
}

# Is the service address configured here, on any interface, up or down?
has_address() {
    if command -v ip >/dev/null; then
        [ -n "$(ip -o -4 addr show to "$service/32" 2>/dev/null)" ]
    else
        trie=$(cat /proc/net/fib_trie)
        case $trie in *"-- $service$nl"*) ;; *) return 1 ;; esac
        trie=${trie#*"-- $service$nl"}
        case ${trie%%"$nl"*} in *"/32 host LOCAL"*) return 0 ;; *) return 1 ;; esac
    fi
}
