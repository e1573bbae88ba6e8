# Rules of others that change the marks of the service's packets, or lead them elsewhere. Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts

# ---- does a rule concern the service? Only what a rule says about itself is looked at: in doubt it does.

number_of() { # number_of ADDRESS: sets number. Here nothing forks: a host may have ten thousand rules.
    IFS=.
    # shellcheck disable=SC2086  # split into four
    set -- $1
    IFS=$nl
    number=$(($1 << 24 | $2 << 16 | $3 << 8 | $4))
}

in_prefix() { # in_prefix ADDRESS/LENGTH: is the service address in there?
    length=32
    case $1 in */*) length=${1#*/} ;; esac
    case $length in 0 | *[!0-9]*) return 0 ;; esac
    is_ipv4 "${1%/*}" || return 0
    number_of "${1%/*}"
    prefix=$((number >> (32 - length)))
    number_of "$service"
    [ "$prefix" -eq $((number >> (32 - length))) ]
}

is_interface() { # is_interface PATTERN: the service's, as iptables writes patterns (eth+)?
    case $1 in
        *+) case $interface in "${1%+}"*) return 0 ;; esac ;;
        "$interface") return 0 ;;
    esac
    return 1
}

after_word() { # after_word WORD LINE: sets word to what follows there
    word=${2#*" $1 "}
    word=${word%% *}
}

# spares LINE INTERFACE ADDRESS PORT: does a condition of an iptables rule keep it from the service's packets? The others
# are the options for the service's side: `-o -s --sport` of what it says, `-i -d --dport` of what it is told.
spares() {
    case $1 in
        *" ! -p tcp "*) return 0 ;;
        *" ! -p "* | *" -p tcp "* | *" -p 6 "*) ;;
        *" -p "*) return 0 ;;
    esac
    after_word "$2" "$1"
    case $1 in
        *" ! $2 "*) ! is_interface "$word" || return 0 ;;
        *" $2 "*) is_interface "$word" || return 0 ;;
    esac
    after_word "$3" "$1"
    case $1 in
        *" ! $3 "*) ! in_prefix "$word" || return 0 ;;
        *" $3 "*) in_prefix "$word" || return 0 ;;
    esac
    case $1 in
        *" ! $4"*) ;;
        *" $4 "*) serves_any "${1#* "$4" }" || return 0 ;;
        *" ${4}s "*) serves_any "${1#* "${4}s" }" || return 0 ;;
    esac
    return 1
}

# nft_spares RULE INTERFACE ADDRESS PORT: as `spares`, of an nft rule: `oif saddr sport` or `iif daddr dport`.
nft_spares() {
    case $1 in
        *"l4proto { "*tcp*" }"*) ;;
        *"udp "* | *"icmp "* | *"ip6 "*) return 0 ;;
    esac
    case $1 in
        *" $2name != "* | *" $2 != "* | *" $2name { "* | *" $2 { "* | *" $2name \""*"*\" "*) ;;
        *" $2name \"$interface\" "* | *" $2 \"$interface\" "*) ;;
        *" $2name \""* | *" $2 \""*) return 0 ;;
    esac
    case $1 in
        *" ip $3 != "* | *" ip $3 { "* | *" ip $3 @"*) ;;
        *" ip $3 "*) word=${1#*" ip $3 "} && { in_prefix "${word%% *}" || return 0; } ;;
    esac
    case $1 in
        *" $4 != "* | *" $4 { "* | *" $4 @"* | *" $4 vmap "* | *" $4 map "*) ;;
        *" tcp $4 "* | *" th $4 "*) word=${1#*" $4 "} && { nft_serves "${word%% *}" || return 0; } ;;
    esac
    return 1
}

nft_serves() { # nft_serves PORT or LOW-HIGH: does one of them belong to the service?
    case $1 in
        *[!0-9-]*) return 0 ;;
        *-*) serves_any "${1%-*}:${1#*-}" ;;
        *) serves_any "$1" ;;
    esac
}

# ---- packet marks

# mark_pair VALUE TOUCHED: what becomes of our bit when the bits TOUCHED are cleared and VALUE is put over them.
mark_pair() {
    effect=''
    [ $((($1 | $2) & mark)) -ne 0 ] || return 0
    effect=erases
    [ $(($1 & mark)) -eq 0 ] || effect=sets
}

mark_effect() { # mark_effect LINE: what an iptables rule does to our bit; sets effect to erases, sets or ''
    effect=''
    case $1 in
        *" -j MARK --set-"*mark\ *) pair=${1#* -j MARK --set-*mark } pair=${pair%% *} ;;
        *" -j CONNMARK --restore-mark"*)
            [ "$conntrack" = liberal ] || return 0 # the service has no connection mark then, and keeps its own
            after_word --nfmask "$1"
            case $1 in *" --nfmask "*) pair=0/$word ;; *) pair=0 ;; esac
            ;;
        *) return 0 ;;
    esac
    case $pair in
        */*) mark_pair "${pair%/*}" "${pair#*/}" ;;
        *) mark_pair "$pair" 0xffffffff ;;
    esac
}

# The iptables rules that change our bit on its way out, as `PLACE EFFECT RULE`. PLACE: before our chain, or after it.
iptables_marks() {
    for table in raw mangle nat filter security; do
        saved=$(host_rules "$table")
        IFS=$nl
        some=''
        for line in $saved; do
            case $line in "-A $chain-"*) continue ;; "-A "*" -j MARK "* | "-A "*" -j CONNMARK "*) ;; *) continue ;; esac
            case $line in "-A NFQF-"*) continue ;; esac # another instance's
            mark_effect "$line"
            if [ -z "$effect" ] || spares "$line " -o -s --sport; then continue; fi
            some="$some$effect $line$nl"
        done
        [ -n "$some" ] || continue
        kept=$(for line in $saved; do spares "$line " -o -s --sport || printf '%s\n' "$line"; done)
        before=$(reachable "$kept" ' OUTPUT ') after=$(reachable "$kept" ' POSTROUTING ')
        IFS=$nl
        for line in $some; do
            effect=${line%% *} line=${line#* }
            from=${line#-A } from=${from%% *}
            case $table:$before in
                raw:*" $from "* | mangle:*" $from "*) printf 'before %s %s\n' "$effect" "$line" ;;
                *:*" $from "*) printf 'after %s %s\n' "$effect" "$line" ;;
            esac
            case $after in *" $from "*) printf 'after %s %s\n' "$effect" "$line" ;; esac
        done
    done
}

# nft_place LINE: sets place for a base chain's line `type ... hook ... priority ...`.
nft_place() {
    place=none
    case $1 in
        *" hook prerouting "*) place=in ;;
        *" hook postrouting "* | *" hook egress "*) place=after ;;
        *" hook output "*)
            level=${1#* priority } level=${level%%;*} base=${level%% *}
            case $base in
                raw) base=-300 ;;
                mangle) base=-150 ;;
                dstnat) base=-100 ;;
                filter) base=0 ;;
                security) base=50 ;;
                srcnat) base=100 ;;
            esac
            case $level in *" "*) level=${level#* } base=$((base + ${level%% *}${level#* })) ;; esac
            place=maybe # of the same priority as ours: it may come before or after
            [ "$base" -ge -150 ] || place=before
            [ "$base" -le -150 ] || place=after
            ;;
    esac
}

nft_effect() { # nft_effect EXPRESSION, of `meta mark set`
    case $1 in
        "meta mark & "* | "mark and "*)
            bits=${1#*[&d] } rest=${bits#* }
            bits=$((${bits%% *})) value=0
            case $rest in "| "* | "^ "* | "or "* | "xor "*) rest=${rest#* } value=${rest%% *} ;; esac
            mark_pair "$value" $((~bits & 0xffffffff))
            ;;
        "meta mark | "* | "meta mark ^ "* | "mark or "* | "mark xor "*)
            value=${1#*mark } value=${value#* }
            mark_pair "${value%% *}" 0
            ;;
        "ct mark"*)
            effect=erases
            [ "$conntrack" = liberal ] || effect='' # what is not tracked has none, and the rule ends there
            ;;
        [0-9]*) mark_pair "${1%% *}" 0xffffffff ;;
        *) effect=erases ;;
    esac
}

# The rules of nft tables of their own, one `TABLE CHAIN PLACE RULE` a line: those that iptables shows are left out. PLACE
# of a chain that others lead to is `-`.
nft_rules() {
    command -v nft >/dev/null || return 0
    managed=' '
    ! command -v iptables-nft-save >/dev/null || managed=' raw mangle nat filter security '
    IFS=$nl
    for line in $(nft -s list ruleset 2>/dev/null); do
        line=${line#"${line%%[! 	]*}"}
        case $line in
            "table ip "*" {" | "table inet "*" {" | "table netdev "*" {")
                table=${line#table * } table=${table%% *} skip='' place=none
                case $line in "table ip "*) case $managed in *" $table "*) skip=yes ;; esac ;; esac
                [ "$table" != "$guard_table" ] || skip=yes
                ;;
            "table "*) skip=yes ;;
            "chain "*" {") name=${line#chain } name=${name%% *} place=- ;;
            "type "*" hook "*" priority "*) nft_place "$line" ;;
            "set "*" {" | "map "*" {" | "}" | '') ;;
            *) [ -n "$skip" ] || printf '%s %s %s %s\n' "$table" "$name" "$place" "$line" ;;
        esac
    done
}

# nft_reached RULES PLACE INTERFACE ADDRESS PORT: the chains, as ` TABLE:CHAIN `, that the service's packets can meet from the
# base chains at PLACE. The last three are as for `nft_spares`.
nft_reached() {
    IFS=$nl
    found=' ' grown=yes
    while [ -n "$grown" ]; do
        grown=''
        for line in $1; do
            rule=${line#* * * } head=${line%" ${line#* * * }"}
            table=${head%% *} name=${head#* } place=${head##* }
            name=$table:${name%% *}
            case $found in
                *" $name "*) ;;
                *)
                    [ "$place" = "$2" ] || continue
                    found="$found$name " grown=yes
                    ;;
            esac
            case $rule in *"jump "* | *"goto "*) ;; *) continue ;; esac
            ! nft_spares " $rule " "$3" "$4" "$5" || continue
            while :; do
                case $rule in
                    *"jump "*) rule=${rule#*jump } ;;
                    *"goto "*) rule=${rule#*goto } ;;
                    *) break ;;
                esac
                to=$table:${rule%%[!A-Za-z0-9_.-]*}
                case $found in *" $to "*) ;; *) found="$found$to " grown=yes ;; esac
            done
        done
    done
    printf '%s\n' "$found"
}

# As iptables_marks, of nft tables of their own. PLACE may be `maybe`.
nft_marks() {
    case $1 in *"mark set "*) ;; *) return 0 ;; esac
    for wanted in before maybe after; do
        reached=$(nft_reached "$1" $wanted oif saddr sport)
        IFS=$nl
        for line in $1; do
            case $line in *" ct mark set "*) continue ;; *" meta mark set "*) ;; *) continue ;; esac
            rule=${line#* * * } name=${line#* }
            case $reached in *" ${line%% *}:${name%% *} "*) ;; *) continue ;; esac
            nft_effect "${rule#*mark set }"
            if [ -z "$effect" ] || nft_spares " $rule " oif saddr sport; then continue; fi
            printf '%s %s nft: %s\n' "$wanted" "$effect" "$rule"
        done
    done
}

# Routing rules that compare our bit with a mark that does not have it.
mark_routes() {
    command -v ip >/dev/null || return 0
    IFS=$nl
    for line in $(ip rule show 2>/dev/null); do
        case $line in *" not from "* | *"	not from "*) continue ;; *" fwmark "*) ;; *) continue ;; esac
        pair=${line#* fwmark } pair=${pair%% *}
        case $pair in */*) bits=${pair#*/} ;; *) bits=0xffffffff ;; esac
        if [ $((bits & mark)) -ne 0 ] && [ $((${pair%/*} & mark)) -eq 0 ]; then printf '%s\n' "${line#*:	}"; fi
    done
}

# ---- the service's packets led elsewhere: a published port of a container, a load balancer

# forwarded_rule: the first rule that takes the service's packets to another program than one of this host's that
# listens at the service address.
forwarded_rule() {
    saved=$(host_rules nat)
    IFS=$nl
    case $saved in
        *" -j DNAT "* | *" -j REDIRECT"* | *" -j NETMAP "*)
            saved=$(for line in $saved; do spares "$line " -i -d --dport || printf '%s\n' "$line"; done)
            reached=$(reachable "$saved" ' PREROUTING ')
            ;;
        *) saved='' ;;
    esac
    for line in $saved; do
        case $line in
            "-A "*" -j DNAT"* | "-A "*" -j REDIRECT"* | "-A "*" -j NETMAP"*) ;;
            *) continue ;;
        esac
        from=${line#-A }
        case $reached in *" ${from%% *} "*) printf '%s\n' "$line" && return ;; esac
    done
    rules=$(nft_rules)
    case $rules in *"dnat "* | *"redirect"*) reached=$(nft_reached "$rules" in iif daddr dport) ;; *) rules='' ;; esac
    for line in $rules; do
        case $line in *" dnat "* | *" redirect"*) ;; *) continue ;; esac
        rule=${line#* * * } name=${line#* }
        case $reached in *" ${line%% *}:${name%% *} "*) ;; *) continue ;; esac
        nft_spares " $rule " iif daddr dport || { printf 'nft: %s\n' "$rule" && return; }
    done
    [ -r /proc/net/ip_vs ] || return 0
    number_of "$service"
    virtual=$(printf '%08X' "$number")
    virtuals=$(cat /proc/net/ip_vs)
    for line in $virtuals; do
        case $line in "TCP  $virtual:"*) ;; *) continue ;; esac
        port=${line#*:} port=$((0x${port%% *}))
        ! serves_any $port || { printf 'IPVS: TCP %s:%s\n' "$service" $port && return; }
    done
}
