# Arguments of nfq-failover-rules: reading, checking, normalising. Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts

nl='
'

warn() { printf '%s: warning: %s\n' "$program" "$1" >&2; }

# Misuse: the caller has to change something. The message says what.
misuse() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 2
}

fail() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 1
}

parse_options() {
    command='' role='' service='' ports='' interface='' tap=clone conntrack=notrack guard=auto inherited=''
    flows='' buckets=''
    instance=default peers='' peer_macs='' queue_in=7760 queue_out=7761 mark=0x10000000 state_root=''
    own=auto own_kind=owner owner=1313231174 # the daemon makes its socket with that group: OWNER in packets/inject.py
    probe=1313231184 # the group and the mark of what tries the host's rules: PROBE in firewall/path.py
    daemon_root=/var/lib/nfq-failover/rules # of the daemon, unless its configuration says otherwise
    iptables=${IPTABLES:-} dry_run='' force='' strict='' check=''
    while [ $# -gt 0 ]; do
        case $1 in
            --*=*) # --option=value is --option value
                option=${1%%=*} value=${1#*=}
                shift
                set -- "$option" "$value" "$@"
                ;;
        esac
        case $1 in
            install | remove | show | check | host)
                [ -z "$command" ] || misuse "'$command' or '$1'? Give one of install, remove, show, check, host."
                command=$1
                ;;
            -h | --help) command=help ;;
            --dry-run) dry_run=yes ;;
            --force) force=yes ;;
            --strict) strict=yes ;;
            --check) check=yes ;;
            --*)
                case $#:${2:-} in 1: | *:--*) misuse "$1 needs a value; see '$program --help'." ;; esac
                take_option "$1" "$2"
                shift
                ;;
            *) misuse "unexpected '$1'; see '$program --help'." ;;
        esac
        shift
    done
    [ -n "$command" ] || misuse "say what to do: install, remove, show, check or host; '$program --help' explains."
    [ "$command" != show ] || [ -z "$check" ] || command=check
}

take_option() {
    case $1 in
        --role) role=$2 ;;
        --service) service=$2 ;;
        --ports) ports=$ports${ports:+,}$2 ;;
        --interface) interface=$2 ;;
        --tap) tap=$2 ;;
        --peer) peers=$peers${peers:+ }$2 ;;
        --peer-mac) peer_macs=$peer_macs${peer_macs:+ }$2 ;;
        --conntrack) conntrack=$2 ;;
        --guard) guard=$2 ;;
        --inherited) inherited=$2 ;;
        --instance) instance=$2 ;;
        --queue-in) queue_in=$2 ;;
        --queue-out) queue_out=$2 ;;
        --mark) mark=$2 ;;
        --own) own=$2 ;;
        --iptables) iptables=$2 ;;
        --state-dir) state_root=$2 ;;
        *) misuse "unknown option $1; see '$program --help'." ;;
    esac
}

is_number() { # is_number VALUE LOWEST HIGHEST
    case $1 in
        '' | *[!0-9]* | 0?* | ???????????*) return 1 ;;
    esac
    [ "$1" -ge "$2" ] && [ "$1" -le "$3" ]
}

# An IPv4 address in dotted decimal.
is_ipv4() {
    case $1 in
        *.*.*.*.* | *[!0-9.]*) return 1 ;;
        *.*.*.*) ;;
        *) return 1 ;;
    esac
    octets=$1.
    while [ -n "$octets" ]; do
        is_number "${octets%%.*}" 0 255 || return 1
        octets=${octets#*.}
    done
}

# The four numbers of an address, joined by spaces.
octets_of() {
    octets=$1.
    while [ -n "$octets" ]; do
        printf '%s ' "${octets%%.*}"
        octets=${octets#*.}
    done
}

is_mac() {
    hex='[0-9A-Fa-f][0-9A-Fa-f]'
    # shellcheck disable=SC2254  # a pattern on purpose
    case $1 in
        $hex:$hex:$hex:$hex:$hex:$hex) return 0 ;;
    esac
    return 1
}

# Put one range into port_list, a sorted list of LOW:HIGH in which nothing overlaps or touches.
add_ports() {
    low=$1 high=$2 before='' after=''
    for range in $port_list; do
        if [ "${range#*:}" -lt $((low - 1)) ]; then
            before="$before $range"
        elif [ "${range%:*}" -gt $((high + 1)) ]; then
            after="$after $range"
        else
            [ "${range%:*}" -ge "$low" ] || low=${range%:*}
            [ "${range#*:}" -le "$high" ] || high=${range#*:}
        fi
    done
    port_list="$before $low:$high$after"
}

check_ports() {
    port_list=''
    rest=$ports,
    while [ -n "$rest" ]; do
        item=${rest%%,*}
        rest=${rest#*,}
        case $item in
            *:*) low=${item%%:*} high=${item#*:} ;;
            *-*) low=${item%%-*} high=${item#*-} ;;
            *) low=$item high=$item ;;
        esac
        { is_number "$low" 1 65535 && is_number "$high" "$low" 65535; } ||
            misuse "--ports: '$item' is no port and no range; write --ports 80,7000:7099."
        add_ports "$low" "$high"
    done
    port_groups
}

# Cut port_list into lists that one multiport match takes: 15 places, a range takes two. Also port_set, for nft.
port_groups() {
    port_lists='' port_set='' group='' room=15
    for range in $port_list; do
        low=${range%:*} high=${range#*:} need=2
        port_set="$port_set${port_set:+, }$low-$high"
        [ "$low" != "$high" ] || range=$low need=1
        if [ "$need" -gt "$room" ]; then
            port_lists="$port_lists $group"
            group='' room=15
        fi
        group=$group${group:+,}$range room=$((room - need))
    done
    port_lists="$port_lists $group"
}

check_mark() {
    case $mark in
        0[xX]*)
            digits=${mark#0?}
            case $digits in '' | *[!0-9A-Fa-f]* | ?????????*) digits='' ;; esac
            ;;
        *)
            digits=$mark
            is_number "$digits" 1 4294967295 || digits=''
            ;;
    esac
    [ -z "$digits" ] || mark=$(printf '0x%x' "$((mark))")
    if [ -z "$digits" ] || [ "$mark" = 0x0 ]; then
        misuse "--mark: give a bit mask such as 0x10000000, one bit that nothing else on this host uses."
    fi
}

# is_current DIR: what is on record there is of this boot and network namespace.
is_current() {
    [ -r "$1/state" ] || return 1
    case $nl$(cat "$1/state")$nl in *"${nl}era=$era$nl"*) ;; *) return 1 ;; esac
}

# What every command needs.
check_common() {
    case $instance in
        '' | *[!A-Za-z0-9_]* | ?????????????????*)
            misuse "--instance: up to 16 letters, digits and underscores, not '$instance'."
            ;;
    esac
    chain=NFQF-$instance
    guard_table=nfq_failover_$instance
    # Records hold for this boot and this network namespace: after a reboot the rules are gone, whatever a file says.
    here=$(readlink /proc/self/ns/net 2>/dev/null) here=${here#*\[}
    here=${here%\]}
    boot=''
    [ ! -r /proc/sys/kernel/random/boot_id ] || read -r boot </proc/sys/kernel/random/boot_id
    era=$boot/$here
    if [ -z "$state_root" ]; then # a name of its own in each network namespace but the machine's first
        first=$(readlink /proc/1/ns/net 2>/dev/null)
        state_root=/run/nfq-failover
        [ "net:[$here]" = "$first" ] || state_root=$state_root${here:+/netns-$here}
        # Whoever asks about a daemon's rules need not know where it keeps its own records.
        if [ "$command" != install ] && is_current "$daemon_root/$instance" && ! is_current "$state_root/$instance"; then
            state_root=$daemon_root
        fi
    fi
    state_dir=$state_root/$instance
    [ -z "$service" ] || is_ipv4 "$service" || misuse "--service: '$service' is no IPv4 address."
    case $interface in
        '') ;;
        *[!A-Za-z0-9_.-]* | ????????????????*) misuse "--interface: '$interface' is no interface name." ;;
    esac
    case $role in
        '' | backup | primary | alone) ;;
        *) misuse "--role: backup, primary or alone, not '$role'." ;;
    esac
}

# What install needs besides.
check_install() {
    [ -n "$role" ] || misuse "install needs --role backup, primary or alone; '$program --help' explains them."
    [ -n "$service" ] || misuse "install needs --service, the address that clients connect to."
    [ -n "$ports" ] || misuse "install needs --ports, for example --ports 80,7000:7099."
    [ -n "$interface" ] || misuse "install needs --interface, the one towards the clients, for example eth0."
    check_ports
    check_mark
    # shellcheck disable=SC2046,SC2183  # four words
    service_hex=$(printf '0x%02x%02x%02x%02x' $(octets_of "$service"))
    is_number "$queue_in" 0 65535 || misuse "--queue-in: a number from 0 to 65535, not '$queue_in'."
    is_number "$queue_out" 0 65535 || misuse "--queue-out: a number from 0 to 65535, not '$queue_out'."
    [ "$queue_in" != "$queue_out" ] || misuse "--queue-in and --queue-out must differ."
    case $conntrack in notrack | liberal) ;; *) misuse "--conntrack: notrack or liberal, not '$conntrack'." ;; esac
    case $own in auto | mark) ;; *) misuse "--own: auto or mark, not '$own'." ;; esac
    case $guard in auto | tc | nft | none) ;; *) misuse "--guard: auto, tc, nft or none, not '$guard'." ;; esac
    case $tap in
        clone) check_peers ;;
        multicast) peers='' peer_macs='' ;;
        *) misuse "--tap: clone or multicast, not '$tap'." ;;
    esac
    [ -z "$inherited" ] || read_inherited
}

check_peers() {
    count=0
    for peer in $peers; do
        is_ipv4 "$peer" || misuse "--peer: '$peer' is no IPv4 address."
        [ "$peer" != "$service" ] || misuse "--peer: give the backup's own address, not the service address $service."
        count=$((count + 1))
    done
    for mac in $peer_macs; do
        is_mac "$mac" || misuse "--peer-mac: '$mac' is no MAC address; write 02:00:00:00:00:03."
        count=$((count - 1))
    done
    [ "$role" = primary ] || return 0
    [ -n "$peers" ] || misuse "--tap clone needs --peer, the address of each backup (or use --tap multicast)."
    [ "$count" -eq 0 ] ||
        misuse "give one --peer-mac for each --peer: without it two cloning hosts would loop ('ip neigh' shows MACs)."
}

# The inherited connections, one `client-ip client-port server-port` per line, into flows; bucketed by client port so
# that no packet meets more than about 128 rules before its own.
read_inherited() {
    if [ "$inherited" = - ]; then
        flow_text=$(cat)
    else
        [ -r "$inherited" ] || misuse "--inherited: can't read '$inherited'."
        flow_text=$(cat "$inherited")
    fi
    total=0
    IFS=$nl
    for flow in $flow_text; do
        case $flow in '#'*) ;; *) total=$((total + 1)) ;; esac
    done
    bucket_size=65536
    [ "$total" -le 16 ] || bucket_size=4096
    [ "$total" -le 256 ] || bucket_size=512
    flows=$(check_flows) || exit 2
    buckets=' '
    for flow in $flows; do
        bucket=${flow##* }
        case $buckets in *" $bucket "*) ;; *) buckets="$buckets$bucket " ;; esac
    done
    unset IFS
}

# The flows as `client-ip client-port server-port bucket`.
check_flows() {
    for flow in $flow_text; do
        case $flow in '#'*) continue ;; esac
        unset IFS
        # shellcheck disable=SC2086  # split into words
        set -- $flow
        { [ $# -eq 3 ] && is_ipv4 "$1" && is_number "$2" 1 65535 && is_number "$3" 1 65535; } ||
            misuse "--inherited: '$flow' should read 'client-ip client-port server-port'."
        printf '%s %s %s %s\n' "$1" "$2" "$3" $(($2 / bucket_size))
    done
}
