"""Chat, publish and subscribe, streams, routing: servers that speak unasked, or to several clients."""

from __future__ import annotations

from typing import Final

from nfq_failover.lab.campaign.programs.case import Program, in_order

_BIRD_CLIENT = """
cat >bird.conf <<END
log "$PWD/log" all;
router id 10.77.0.1;
protocol device {}
protocol bgp server {
  local 10.77.0.1 as 65001; neighbor $VIP port 7000 as 65000; multihop; hold time 9; keepalive time 1;
  connect delay time 1; error wait time 1, 2;
  ipv4 { import all; export none; };
  debug { states };
}
END
bird -c bird.conf -s "$PWD/ctl" -P "$PWD/pid"
sleep 12
birdc -s "$PWD/ctl" show protocols server >state
birdc -s "$PWD/ctl" show route count >routes
birdc -s "$PWD/ctl" down >/dev/null
"""
_BIRD_SERVER = """
{
cat <<END
log stderr all;
router id 10.77.0.100;
protocol device {}
protocol static { ipv4;
END
for i in $(seq 200); do echo "route 198.18.$i.0/24 blackhole;"; done
cat <<END
}
protocol bgp peer1 {
  local $VIP port 7000 as 65000; neighbor 10.77.0.1 as 65001; multihop; hold time 9; keepalive time 1; passive yes;
  strict bind yes; ipv4 { import none; export all; };
}
END
} >bird.conf
exec bird -f -c bird.conf -s "$PWD/ctl"
"""
_ICECAST = """
cat >conf <<END
<icecast>
<limits><clients>9</clients><sources>2</sources><burst-size>65536</burst-size></limits>
<authentication><source-password>secret</source-password><admin-password>secret</admin-password></authentication>
<hostname>service</hostname><listen-socket><port>7000</port></listen-socket>
<paths><logdir>$PWD</logdir><webroot>$PWD</webroot><adminroot>$PWD</adminroot></paths>
<security><chroot>0</chroot><changeowner><user>icecast2</user><group>icecast</group></changeowner></security>
</icecast>
END
chmod 777 .; exec icecast2 -c conf
"""
_IRC = """
printf 'NICK me\\r\\nUSER me 0 * :me\\r\\n'; sleep 1; printf 'JOIN #c\\r\\n'
for i in $(seq 60); do printf 'PING :%s\\r\\n' $i; sleep 0.1; done; printf 'QUIT\\r\\n'; sleep 1
"""

PROGRAMS: Final = (
    Program(
        "mosquitto (mosquitto_sub)",
        ("mosquitto", "mosquitto-clients"),
        ("mosquitto", "mosquitto_sub", "mosquitto_pub"),
        "mosquitto -h | sed -n 's,mosquitto version ,,p'",
        "printf 'listener 7000\\nallow_anonymous true\\nuser root\\n' >conf; exec mosquitto -c conf",
        "timeout 40 mosquitto_sub -h $VIP -p 7000 -i sub -q 1 -t t -C 60 >got & sleep 0.5;"
        " for i in $(seq 60); do echo $i; sleep 0.1; done | mosquitto_pub -h $VIP -p 7000 -i pub -q 1 -t t -l; wait $!",
        in_order(60),
    ),
    Program(
        "redis (SUBSCRIBE and PUBLISH)",
        ("redis-server", "redis-tools", "netcat-openbsd"),
        ("redis-server", "redis-cli", "nc"),
        "redis-server --version | sed 's,.*v=\\([^ ]*\\).*,\\1,'",
        'exec redis-server --port 7000 --protected-mode no --save "" --appendonly no --dir "$PWD"',
        "{ printf 'SUBSCRIBE c\\r\\n'; sleep 9; } | nc -q 1 $VIP 7000 >sub & sleep 0.5;"
        " for i in $(seq 60); do printf 'PUBLISH c %s\\r\\n' $i; sleep 0.1; done | nc -q 1 $VIP 7000 >pub; wait $!;"
        " tr -d '\\r' <sub | grep -A 4 '^message' | grep -A 1 '^\\$[12]$' | grep '^[0-9]' >got",
        in_order(60),
    ),
    Program(
        "ngircd (nc)",
        ("ngircd", "netcat-openbsd"),
        ("ngircd", "nc"),
        "ngircd --version | sed -n '1s,ngIRCd \\([^-]*\\).*,\\1,p'",
        """
printf '[Global]\\nName = irc.example\\nInfo = test\\nPorts = 7000\\n' >conf
printf '[Options]\\nDNS = no\\nIdent = no\\nPAM = no\\n[Limits]\\nPongTimeout = 20\\n' >>conf
exec ngircd -n -f "$PWD/conf"
""",
        f"{{ {_IRC.strip()}; }} | nc -q 1 $VIP 7000 >all;"
        " tr -d '\\r' <all | sed -n 's,.*PONG .*:\\([0-9]*\\)$,\\1,p' >got",
        in_order(60),
    ),
    Program(
        "bird as a BGP peer (bird)",
        ("bird2",),
        ("bird", "birdc"),
        "bird --version 2>&1 | sed 's,.*version ,,'",
        _BIRD_SERVER,
        _BIRD_CLIENT,
        "grep -q Established state || { tail -n 1 state; exit 1; };"
        " [ $(grep -c 'State changed to up' log) = 1 ] || { echo the session was lost; exit 1; };"
        " grep -q '200 of 200' routes",
        warm_s=5.0,
        spread_s=3.0,
    ),
    Program(
        "icecast2 (curl as source and as listener)",
        ("icecast2", "curl", "python3"),
        ("icecast2", "curl", "python3"),
        "icecast2 -v | sed 's,Icecast ,,'",
        _ICECAST,
        'timeout 9 curl -sS --limit-rate 64k -H Expect: -H "Content-Type: audio/mpeg" -T "$DATA/blob"'
        ' "http://source:secret@$VIP:7000/a.mp3" >source 2>&1 & sleep 1;'
        ' timeout 7 curl -sS -o got "http://$VIP:7000/a.mp3" || [ $? = 124 ]',
        'python3 -c \'import sys; got, all = (open(name, "rb").read() for name in sys.argv[1:]);'
        ' print(len(got)); sys.exit(got not in all or len(got) < 200000)\' got "$DATA/blob"',
        warm_s=3.0,
    ),
    Program(
        "nats-server (nc)",
        ("nats-server", "netcat-openbsd"),
        ("nats-server", "nc"),
        "nats-server --version | sed 's,.*v,,'",
        "exec nats-server -a 0.0.0.0 -p 7000",
        "{ printf 'CONNECT {\"verbose\":false}\\r\\nSUB s 1\\r\\n';"
        " for i in $(seq 60); do printf 'PUB s %s\\r\\n%s\\r\\n' ${#i} $i; sleep 0.1; done; } | nc -q 1 $VIP 7000 >all;"
        " tr -d '\\r' <all | grep '^[0-9]' >got",
        in_order(60),
    ),
    Program(
        "socat as an echo server of lines (nc)",
        ("socat", "netcat-openbsd"),
        ("socat", "nc"),
        "socat -V | sed -n 's,socat version \\([^ ]*\\).*,\\1,p'",
        "exec socat TCP4-LISTEN:7000,fork,reuseaddr EXEC:cat",
        "for i in $(seq 60); do echo $i; sleep 0.1; done | nc -q 1 $VIP 7000 >got",
        in_order(60),
    ),
)
