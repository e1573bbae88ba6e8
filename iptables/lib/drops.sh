# Rules of this host that may drop the service's packets, behind ours or before. Sourced; POSIX sh.
# shellcheck shell=sh disable=SC2034,SC2154  # variables are shared between the script and its parts
#
# While this host shadows, what the service says ends in our queue and never meets the rules behind it. Whether they would
# let it pass is tried by the daemon, with probes; here is looked for what may be the reason if they don't. Only `host` says
# it, in the lines of `finding`, with `hint` for their weight. WAY is the way of a packet: in (from clients), out (to
# clients), lo (what the daemon injects).

hint() { # hint CODE WHAT CURE
    printf '%s\thint\t%s\t%s' "$1" "$2" "$3" | tr -s '\n ' ' '
    echo
}

report_drops() {
    raw=$(host_rules raw) mangle=$(host_rules mangle) filter=$(host_rules filter) security=$(host_rules security)
    ruleset=$(nft -s list ruleset 2>/dev/null)
    drops_in in
    drops_out out
    really=$interface interface=lo # all that is injected passes there
    drops_out lo
    drops_in lo
    interface=$really
}

drops_in() { # drops_in WAY
    side='-i -d --dport'
    table_drops "$1" raw PREROUTING "$raw"
    table_drops "$1" mangle PREROUTING "$mangle"
    table_drops "$1" mangle INPUT "$mangle"
    table_drops "$1" filter INPUT "$filter"
    table_drops "$1" security INPUT "$security"
    nft_drops "$1" ' ingress prerouting input ' 'iif daddr dport'
}

drops_out() { # drops_out WAY
    # What is injected comes from a client.
    side='-o -s --sport' words='oif saddr sport'
    [ "$1" = out ] || side='-o -d --dport' words='oif daddr dport'
    table_drops "$1" raw OUTPUT "$raw"
    table_drops "$1" mangle OUTPUT "$mangle"
    table_drops "$1" filter OUTPUT "$filter"
    table_drops "$1" security OUTPUT "$security"
    table_drops "$1" mangle POSTROUTING "$mangle"
    nft_drops "$1" ' output postrouting egress ' "$words"
}

keeps() { # keeps RULES: does one of them drop packets, or give them to a program, which may?
    case $1 in *" -j DROP"* | *" -j REJECT"* | *" -j TARPIT"* | *" -j NFQUEUE"* | *" -j SYNPROXY"*) return 0 ;; esac
    return 1
}

invalid_alone() { # invalid_alone RULE: is it about what is INVALID only, which the service's packets are not, untracked?
    [ "$conntrack" = notrack ] || return 1
    case $1 in
        *" ! --ctstate "* | *" ! --state "*) return 1 ;;
        *" --ctstate INVALID "* | *" --state INVALID "* | *"ct state invalid "*) return 0 ;;
    esac
    return 1
}

table_drops() { # table_drops WAY TABLE HOOK SAVED; `side` is for `spares`
    case $4 in *":$3 DROP "*) ;; *) keeps "$4" || return 0 ;; esac
    unset IFS
    # shellcheck disable=SC2086  # three words
    set -- "$1" "$2" "$3" "$4" $side
    IFS=$nl
    kept=$(for line in $4; do
        case $line in "-A NFQF-"*) continue ;; esac
        spares "$line " "$5" "$6" "$7" || printf '%s\n' "$line"
    done)
    reached=$(reachable "$kept" " $3 ")
    IFS=$nl
    for line in $kept; do
        case $line in "-A "*) ;; *) continue ;; esac
        keeps "$line" || continue
        ! invalid_alone "$line " || continue
        from=${line#-A } from=${from%% *}
        case $reached in *" $from "*) ;; *) continue ;; esac
        hint "path-$1" "iptables table $2: $line" "$(iptables_cure "$2" "$from" "$6" "$7")"
    done
    case $4 in
        *":$3 DROP "*)
            hint "path-$1" "iptables table $2: the policy of $3 is DROP, and no rule accepts them" \
                "$(iptables_cure "$2" "$3" "$6" "$7")"
            ;;
    esac
    unset IFS
}

iptables_cure() { # iptables_cure TABLE CHAIN ADDRESS PORT, as for `spares`
    unset IFS
    for list in $port_lists; do
        echo "$iptables -t $1 -I $2 $3 $service -p tcp -m multiport ${4}s $list -j ACCEPT"
        return
    done
}

nft_drops() { # nft_drops WAY HOOKS WORDS: the words are for `nft_spares`
    case $ruleset in *" drop"* | *reject* | *queue* | *synproxy*) ;; *) return 0 ;; esac
    unset IFS
    # shellcheck disable=SC2086  # three words
    set -- "$1" "$2" $3
    managed=' '
    ! command -v iptables-nft-save >/dev/null || managed=' raw mangle nat filter security '
    IFS=$nl
    for line in $ruleset; do
        line=${line#"${line%%[! 	]*}"}
        case $line in
            "table "*" {")
                family=${line#table } table=${family#* } family=${family%% *} table=${table%% *} skip=''
                case $family in
                    ip) case $managed in *" $table "*) skip=yes ;; esac ;;
                    inet | netdev) ;;
                    *) skip=yes ;;
                esac
                [ "$table" != "$guard_table" ] || skip=yes
                ;;
            "chain "*" {") name=${line#chain } name=${name%% *} other='' ;;
            "type "*" hook "*)
                hook=${line#* hook } hook=${hook%% *}
                case $2 in *" $hook "*) ;; *) other=yes ;; esac # a chain that others lead to may be of any hook
                case $other$skip$line in
                    "type "*"policy drop;"*)
                        hint "path-$1" "nft table $family $table: the policy of chain $name is drop, and no rule accepts them" \
                            "$(nft_cure "$4" "$5")"
                        ;;
                esac
                ;;
            *drop* | *reject* | "queue "* | *" queue "* | *synproxy*)
                ! invalid_alone "$line " || continue
                if [ -n "$skip$other" ] || nft_spares " ${line%% reject*} " "$3" "$4" "$5"; then continue; fi
                hint "path-$1" "nft table $family $table, chain $name: $line" "$(nft_cure "$4" "$5")"
                ;;
        esac
    done
    unset IFS
}

nft_cure() { # nft_cure ADDRESS PORT, as for `nft_spares`
    echo "nft insert rule $family $table $name ip $1 $service tcp $2 { $port_set } accept"
}
