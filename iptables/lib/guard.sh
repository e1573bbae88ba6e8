# The silence guard: a second layer behind the rules, which drops what leaves without our mark. Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts
#
# Two ways to carry it. tc (a small classic BPF program at the interface's egress) is the first choice: neither
# `iptables -F` nor `nft flush ruleset`, as `systemctl restart nftables` does it, takes it away, and TCP believes that a
# dropped segment was sent, as it does when the queue drops it. nft (a netdev table with an egress hook) is the second.
# Both are keyed on the mark: a takeover changes nothing here before it is heard.

# guard_scope ROLE: all (every IPv4 packet of the service address), ports (the service's own), none (bypass must work).
guard_scope() {
    case $1 in
        backup) echo all ;;
        primary) echo ports ;;
        *) echo none ;;
    esac
}

# rank SCOPE: the bigger, the tighter.
rank() {
    case $1 in
        all) echo 2 ;;
        ports) echo 1 ;;
        *) echo 0 ;;
    esac
}

# guard_signature: instructions without effect that spell "NFQF" and the instance's name, so that we know our own.
guard_signature() { signed 1313231174; }

signed() { # signed WORD
    printf '0 0 0 %d,' "$1"
    letters=$instance
    while [ -n "$letters" ]; do
        printf '0 0 0 %d,' "'$letters"
        letters=${letters#?}
    done
}

# guard_program SCOPE: the classic BPF program, in tc's words. Loads at 4293918720 + N read byte N of the IP header
# (SKF_NET_OFF in linux/filter.h), at 4294963220 the mark (SKF_AD_OFF + SKF_AD_MARK). Verdicts: 4 drops the packet and
# tells the sender that all is well (TC_ACT_STOLEN), -1 goes on to the next filter (TC_ACT_UNSPEC).
guard_program() {
    # shellcheck disable=SC2046,SC2183  # four words
    address=$(printf '%d' $(printf '0x%02x%02x%02x%02x' $(octets_of "$service")))
    tail=4 # instructions from the last jump to the verdict "go on"
    tests=''
    if [ "$1" = ports ]; then
        left=0
        for range in $port_list; do left=$((left + 3)); done
        after=$((left + 1 + tail)) # from the end of the tests' head to "go on"
        # protocol TCP; not a later fragment; X = header length; A = source port
        tests="48 0 0 4293918729,21 1 0 6,5 0 0 $((after + 5)),40 0 0 4293918726,69 0 1 8191,5 0 0 $((after + 2)),"
        tests="${tests}177 0 0 4293918720,72 0 0 4293918720,"
        for range in $port_list; do
            left=$((left - 3))
            tests="${tests}53 0 2 ${range%:*},37 1 0 ${range#*:},5 0 0 $((left + 1)),"
        done
        tests="${tests}5 0 0 $tail,"
    fi
    body="$(guard_signature)32 0 0 4293918732,21 1 0 $address,5 0 0 $(($(commas "$tests") + tail)),$tests"
    body="${body}32 0 0 4294963220,84 0 0 $((mark)),21 1 0 $((mark)),6 0 0 4,6 0 0 4294967295"
    printf '%d,%s\n' "$(($(commas "$body") + 1))" "$body"
}

commas() {
    text=$1 count=0
    while :; do
        case $text in *,*) text=${text#*,} count=$((count + 1)) ;; *) break ;; esac
    done
    echo "$count"
}

# tc_filters INTERFACE: our own filters there, as `PREF PROGRAM` lines.
tc_filters() {
    tc_signed "$(guard_signature)" "$(tc filter show dev "$1" egress 2>/dev/null)"
}

tc_signed() { # tc_signed SIGNATURE SHOWN: those of them that begin so
    signature=$1
    IFS=$nl
    for line in $2; do
        case $line in
            *" pref "*"bytecode '"*",$signature"*)
                pref=${line#* pref } program=${line#*bytecode \'}
                printf '%s %s\n' "${pref%% *}" "${program%\'*}"
                ;;
        esac
    done
}

# Beside the guard: what turns the daemon's probes round, frames that come in again as if from the network. It has a mark
# that nothing else has, and is for the service address: other packets go on. Without tc or its action "mirred" there
# are no such probes.
probe_signature() { signed "$probe"; }

probe_program() { # loads at 4293918736: the destination
    # shellcheck disable=SC2046,SC2183  # four words
    address=$(printf '%d' $(printf '0x%02x%02x%02x%02x' $(octets_of "$service")))
    body="$(probe_signature)32 0 0 4294963220,21 0 3 $probe,32 0 0 4293918736,21 0 1 $address,6 0 0 4294967295,6 0 0 0"
    printf '%d,%s\n' "$(($(commas "$body") + 1))" "$body"
}

tc_probes() { # tc_probes INTERFACE: as tc_filters
    tc_signed "$(probe_signature)" "$(tc filter show dev "$1" egress 2>/dev/null)"
}

probe_apply() { # probe_apply SCOPE
    have=$(tc_probes "$interface")
    if [ "$1" != all ]; then
        probe_remove "$interface"
        return
    fi
    case $have in
        '') ;;
        *" $(probe_program)") return 0 ;;
        *) probe_remove "$interface" ;;
    esac
    tc filter add dev "$interface" egress protocol ip pref "$(free_pref "$interface")" handle 1 bpf \
        bytecode "$(probe_program)" action mirred ingress redirect dev "$interface" 2>/dev/null || true
}

probe_remove() { # probe_remove INTERFACE
    for pref in $(IFS=$nl; for line in $(tc_probes "$1"); do echo "${line%% *}"; done); do
        tc filter del dev "$1" egress pref "$pref" || return 1
    done
}

# The lowest preference that nobody uses: an earlier filter could let packets pass before ours sees them.
free_pref() {
    used=" $(IFS=$nl
        for line in $(tc filter show dev "$1" egress 2>/dev/null); do
            line=${line#* pref }
            printf '%s ' "${line%% *}"
        done)"
    pref=1
    while :; do
        case $used in *" $pref "*) pref=$((pref + 1)) ;; *) break ;; esac
    done
    echo "$pref"
}

# To make or to delete the interface's clsact qdisc stops its transmit queue for a moment, and the kernel drops what
# leaves meanwhile without a trace; to exchange filters does not. So it is there from the first guard on (before the
# service address is), also in a role without a guard, and the removal takes it away. A mark says that one of our
# instances has made it: whichever is the last to go deletes it.
clsact_record() { echo "$state_root/clsact.$1"; }

tc_apply() { # tc_apply SCOPE: create or exchange our filter, in one step
    command -v tc >/dev/null || return 1
    case $(tc qdisc show dev "$interface" 2>/dev/null) in
        *"qdisc clsact "*) ;;
        *)
            tc qdisc add dev "$interface" clsact 2>/dev/null || return 1
            if ! (echo "$era" >"$(clsact_record "$interface")") 2>/dev/null; then # nobody would know that it is ours
                tc qdisc del dev "$interface" clsact 2>/dev/null
                return 1
            fi
            ;;
    esac
    pref=$(tc_filters "$interface") pref=${pref%% *}
    [ -n "$pref" ] || pref=$(free_pref "$interface")
    tc filter replace dev "$interface" egress protocol ip pref "$pref" handle 1 bpf \
        bytecode "$(guard_program "$1")" direct-action 2>/dev/null || return 1
    probe_apply "$1"
}

tc_clear() { # tc_clear INTERFACE: our filters go, its clsact qdisc stays
    command -v tc >/dev/null || return 0
    for pref in $(IFS=$nl; for line in $(tc_filters "$1"); do echo "${line%% *}"; done); do
        tc filter del dev "$1" egress pref "$pref" || return 1
    done
    probe_remove "$1"
}

tc_remove() { # tc_remove INTERFACE: and that goes too, if it is ours and nobody needs it
    command -v tc >/dev/null || return 0
    tc_clear "$1" || return 1
    ! others_serve "$1" || return 0
    [ "$(cat "$(clsact_record "$1")" 2>/dev/null)" = "$era" ] || return 0
    [ -z "$(tc filter show dev "$1" egress; tc filter show dev "$1" ingress)" ] || return 0
    rm -f "$(clsact_record "$1")"
    tc qdisc del dev "$1" clsact 2>/dev/null || return 0 # the interface is gone, and with it the qdisc
}

others_serve() { # others_serve INTERFACE: another of our instances is installed there
    set +f
    for record in "$state_root"/*/state; do
        [ "$record" != "$state_root/$instance/state" ] || continue
        case "$nl$(cat "$record" 2>/dev/null)$nl" in
            *"${nl}era=$era$nl"*"${nl}interface=$1$nl"*)
                set -f
                return 0
                ;;
        esac
    done
    set -f
    return 1
}

nft_apply() { # nft_apply SCOPE: create or exchange our table, in one transaction
    command -v nft >/dev/null || return 1
    render guard.nft "$1" | nft -f - 2>/dev/null
}

nft_listing() { nft -s list table netdev "$guard_table" 2>/dev/null; }

nft_remove() {
    command -v nft >/dev/null && nft_listing >/dev/null || return 0
    nft delete table netdev "$guard_table"
}

# guard_apply SCOPE: bring the guard to a scope; sets guard_kind (tc, nft, none). Never fails for want of tc and nft:
# the first layer still stands, and the second is missed loudly.
guard_apply() {
    if [ "$1" = none ] || [ "$guard" = none ]; then
        guard_kind=none
        if [ "$guard" = none ]; then tc_remove "$interface"; else tc_clear "$interface"; fi && nft_remove
        return
    fi
    case $guard in
        auto | tc) guard_kind=tc ;;
        nft) guard_kind=nft ;;
    esac
    if [ "$guard_kind" = tc ] && ! tc_apply "$1"; then
        guard_kind=nft
        [ "$guard" = auto ] || fail "--guard tc: tc can't put a filter at $interface's egress; use --guard auto."
    fi
    if [ "$guard_kind" = nft ] && ! nft_apply "$1"; then
        [ "$guard" = auto ] || fail "--guard nft: nft can't hook $interface's egress; use --guard auto."
        guard_kind=none
        warn "NO SECOND LAYER: neither tc nor nft can guard $interface. If the rules are ever flushed, packets of
  $service leave unguarded. Install the package iproute2 (tc) or nftables (nft, kernel 5.16 or later)."
    fi
    [ "$guard_kind" = tc ] || tc_remove "$interface" # the other kind goes only after the new one is there
    [ "$guard_kind" = nft ] || nft_remove
}

# guard_seen KIND INTERFACE: the guard as the kernel shows it, without counters.
guard_seen() {
    case $1 in
        tc)
            shown=$(tc filter show dev "$2" egress 2>/dev/null)
            tc_signed "$(guard_signature)" "$shown"
            tc_signed "$(probe_signature)" "$shown"
            ;;
        nft) nft_listing ;;
    esac
}
