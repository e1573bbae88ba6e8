# Templates to rules, and rules into the kernel: save, compare, one restore. Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts
#
# A "list" below is lines of text: `:CHAIN` for each chain of ours and `-A ...` for each rule of ours, including the
# jumps from built-in chains. It is what `iptables-save` prints, less what is not ours.

# Which iptables; sets iptables, save, restore, variant (nf_tables or legacy).
find_iptables() {
    iptables=${iptables:-iptables}
    save=$iptables-save restore=$iptables-restore
    version=$("$iptables" --version 2>/dev/null) ||
        fail "can't run '$iptables': install the package iptables, or name the program with --iptables."
    case $version in
        *nf_tables*) variant=nf_tables ;;
        *) variant=legacy ;;
    esac
}

# Put $2 in place of each @$1@ in line.
replace() {
    while :; do
        case $line in
            *"@$1@"*) line=${line%%"@$1@"*}$2${line#*"@$1@"} ;;
            *) return 0 ;;
        esac
    done
}

# render FILE WORD: the template's lines with the placeholders filled in; WORD is one more condition that holds.
# Runs in a subshell (it changes IFS).
render() {
    conditions=" $tap $conntrack by-$own_kind $2 "
    text=$(cat "$parts/$1") || fail "the template $parts/$1 is missing: the installation is incomplete."
    IFS=$nl
    for line in $text; do
        line=${line#"${line%%[! ]*}"}
        case $line in
            '' | '#'*) continue ;;
            '['*)
                word=${line%%]*} line=${line#*] }
                case $conditions in *" ${word#[} "*) ;; *) continue ;; esac
                ;;
        esac
        case $line in *@*) fill ;; *) printf '%s\n' "$line" ;; esac
    done
}

fill() {
    replace CHAIN "$chain"
    replace SERVICE "$service"
    replace SERVICE_HEX "$service_hex"
    replace INTERFACE "$interface"
    replace MARK "$mark"
    replace OWNER "$owner"
    replace PROBE "$probe"
    replace QUEUE_IN "$queue_in"
    replace QUEUE_OUT "$queue_out"
    replace TABLE "$guard_table"
    replace PORT_SET "$port_set"
    template=$line
    case $line in
        *@CLIENT@*) each_flow ;;
        *@BUCKET@* | *@BUCKET_PORTS@*) each BUCKET "$buckets" ;;
        *@PORTS@*) each PORTS "$port_lists" ;;
        *@PEER@*) each PEER "$peers" ;;
        *@PEER_MAC@*) each PEER_MAC "$peer_macs" ;;
        *) printf '%s\n' "$line" ;;
    esac
}

each() { # each NAME VALUES: the line once per value
    unset IFS
    for value in $2; do
        line=$template
        replace "$1" "$value"
        [ "$1" != BUCKET ] ||
            replace BUCKET_PORTS "$((value * bucket_size)):$(((value + 1) * bucket_size - 1))"
        printf '%s\n' "$line"
    done
    IFS=$nl
}

each_flow() {
    for flow in $flows; do
        unset IFS
        # shellcheck disable=SC2086  # split into words
        set -- $flow
        line=$template
        replace CLIENT "$1"
        replace CLIENT_PORT "$2"
        replace SERVER_PORT "$3"
        replace BUCKET "$4"
        printf '%s\n' "$line"
    done
    IFS=$nl
}

# The wanted list of one table, from a template.
wanted_list() {
    IFS=$nl
    rendered=$(render "$1" '') || exit 1
    for line in $rendered; do
        case $line in
            :*) printf '%s\n' "${line%% *}" ;;
            -*) printf '%s\n' "$line" ;;
        esac
    done
}

# Reading a table with the legacy kind creates it (and with nat, connection tracking): what is not there stays so.
is_table() { # is_table TABLE VARIANT
    [ "$2" = legacy ] || return 0
    case "$nl$(cat /proc/net/ip_tables_names 2>/dev/null)$nl" in *"$nl$1$nl"*) return 0 ;; esac
    return 1
}

save_table() {
    is_table "$1" "$variant" || return 0
    "$save" -t "$1" || fail "can't read table $1 (see above); be root, and check that '$iptables' fits this kernel."
}

# own_list SAVED: the list of what is ours in the output of iptables-save.
own_list() {
    IFS=$nl
    for line in $1; do
        case $line in
            ":$chain-"*) printf '%s\n' "${line%% *}" ;;
            "-A $chain-"* | -A\ *" -j $chain-"* | -A\ *" -g $chain-"*) printf '%s\n' "$line" ;;
        esac
    done
}

# restore_input TABLE NOW WANTED: what iptables-restore needs to bring the list NOW to the list WANTED, in one commit.
restore_input() {
    [ -n "$2$3" ] || return 0
    IFS=$nl
    printf '*%s\n' "$1"
    seen=' ' stale=''
    for line in $3; do # naming a chain creates it, or empties it
        case $line in :*) seen="$seen$line " ;; *) continue ;; esac
        printf '%s - [0:0]\n' "$line"
    done
    for line in $2; do
        case $line in
            :*)
                case $seen in *" $line "*) continue ;; esac
                printf '%s - [0:0]\n' "$line"
                stale="$stale-X ${line#:}$nl"
                ;;
            "-A $chain-"*) ;;
            *) printf -- '-D %s\n' "${line#-A }" ;;
        esac
    done
    for line in $3; do
        case $line in -*) printf '%s\n' "$line" ;; esac
    done
    printf '%sCOMMIT\n' "$stale"
}

# The jumps must stay the last rules of their chains: a packet that we queue sees no later rule. Prints the chains where
# somebody's rule comes after ours (another instance's jump does no harm).
not_last() {
    IFS=$nl
    late=''
    for line in $1; do
        case $line in
            "-A PREROUTING "* | "-A OUTPUT "*)
                hook=${line#-A } hook=${hook%% *}
                case $line in
                    *" -j $chain-"*) late="$late$hook " ;;
                    *" -j NFQF-"*) ;;
                    *) case " $late" in *" $hook "*) printf '%s\n' "$hook" ;; esac ;;
                esac
                ;;
        esac
    done
}

restore_rules() { # restore_rules INPUT [--test]
    [ -n "$1" ] || return 0
    printf '%s\n' "$1" | "$restore" --noflush -w 5 ${2:+"$2"}
}
