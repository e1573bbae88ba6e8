"""Files and whole trees: FTP, rsync, git, Subversion, DNS zones; and what only measures."""

from __future__ import annotations

from typing import Final

from nfq_failover.lab.campaign.programs.case import WHOLE, Program

_VSFTPD = """
cat >conf <<END
listen=YES
listen_port=7000
background=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root=$DATA
secure_chroot_dir=$PWD
pasv_min_port=7010
pasv_max_port=LAST
seccomp_sandbox=NO
port_enable=YES
connect_from_port_20=NO
END
chmod 755 . ; chown root conf; exec vsftpd "$PWD/conf"
"""
_VSFTPD_VERSION = "dpkg-query -W -f '${Version}' vsftpd"
_GIT = """
git init -q -b main repo && cp blob small repo
git -C repo -c user.name=a -c user.email=a@b.example add . 2>/dev/null
git -C repo -c user.name=a -c user.email=a@b.example commit -q -m one && git -C repo repack -q -a -d
git -C repo config pack.threads 1 && touch repo/.git/git-daemon-export-ok
"""

PROGRAMS: Final = (
    Program(
        "vsftpd, passive, one data port (curl)",
        ("vsftpd", "curl"),
        ("vsftpd", "curl"),
        _VSFTPD_VERSION,
        _VSFTPD.replace("LAST", "7010"),
        'curl -sS -m 60 --disable-epsv -o got "ftp://$VIP:7000/blob"',
        WHOLE,
        prepare="chmod 755 . ..",
    ),
    Program(
        "vsftpd, passive, ten data ports (curl)",
        ("vsftpd", "curl"),
        ("vsftpd", "curl"),
        _VSFTPD_VERSION,
        _VSFTPD.replace("LAST", "7019"),
        'curl -sS -m 30 --disable-epsv -o got "ftp://$VIP:7000/blob"',
        WHOLE,
        prepare="chmod 755 . ..",
    ),
    Program(
        "vsftpd, active (curl -P)",
        ("vsftpd", "curl"),
        ("vsftpd", "curl"),
        _VSFTPD_VERSION,
        _VSFTPD.replace("LAST", "7010"),
        'curl -sS -m 30 -P - --disable-eprt -o got "ftp://$VIP:7000/blob"',
        WHOLE,
        prepare="chmod 755 . ..",
    ),
    Program(
        "rsync as a daemon (rsync)",
        ("rsync",),
        ("rsync",),
        "rsync --version | sed -n '1s,[^0-9]*\\([0-9.]*\\) .*,\\1,p'",
        "printf 'use chroot = no\\n[m]\\npath = %s\\n' \"$DATA\" >conf;"
        ' exec rsync --daemon --no-detach --port 7000 --config "$PWD/conf"',
        "rsync -q --timeout 30 rsync://$VIP:7000/m/blob got",
        WHOLE,
    ),
    Program(
        "git daemon (git clone)",
        ("git",),
        ("git",),
        "git --version | cut -d ' ' -f 3",
        'exec git daemon --reuseaddr --port=7000 --base-path="$DATA" "$DATA"',
        "git clone -q git://$VIP:7000/repo got",
        'cmp got/blob "$DATA/blob" >&2 || { echo other bytes; exit 1; }',
        prepare=_GIT,
    ),
    Program(
        "svnserve (svn checkout)",
        ("subversion",),
        ("svnserve", "svn"),
        "svnserve --version -q",
        'exec svnserve -d --foreground --listen-port 7000 -r "$DATA"',
        "svn checkout -q --non-interactive svn://$VIP:7000/repo got",
        'cmp got/blob "$DATA/blob" >&2 || { echo other bytes; exit 1; }',
        prepare='svnadmin create repo && svn import -q -m one blob "file://$PWD/repo/blob"',
    ),
    Program(
        "knot (dig axfr)",
        ("knot", "bind9-dnsutils"),
        ("knotd", "dig"),
        "knotd --version | sed 's,[^0-9]*,,'",
        """
cat >conf <<END
server:
    listen: 0.0.0.0@7000
    rundir: "$PWD"
database:
    storage: "$PWD"
log:
  - target: stderr
    any: warning
acl:
  - id: all
    action: transfer
zone:
  - domain: example
    file: "$DATA/zone"
    acl: all
    zonefile-sync: -1
    journal-content: none
END
exec knotd -c "$PWD/conf"
""",
        "dig +tcp +noall +answer +tries=1 +time=30 -p 7000 @$VIP example axfr >zone",
        "[ $(grep -c TXT zone) = 200000 ] || { wc -l zone; tail -n 1 zone; exit 1; }",
        prepare="{ echo '$TTL 3600'; echo '$ORIGIN example.'; echo '@ SOA ns a 1 3600 600 86400 60'; echo '@ NS ns';"
        " echo 'ns A 192.0.2.1'; seq 200000 | sed 's,.*,h& TXT \"a text of some length for name &\",'; } >zone",
        rate="20mbit",
        warm_s=2.0,
    ),
    Program(
        "iperf3 (iperf3 -R)",
        ("iperf3",),
        ("iperf3",),
        "iperf3 --version | sed -n '1s,iperf \\([^ ]*\\).*,\\1,p'",
        "exec iperf3 -s -p 7000",
        "iperf3 -R -t 6 -p 7000 -c $VIP >out 2>&1",
        "grep -q 'iperf Done' out || { tail -n 2 out; exit 1; }",
    ),
    Program(
        "OpenSSH (ssh)",
        ("openssh-server", "openssh-client"),
        ("sshd", "ssh", "ssh-keygen"),
        "ssh -V 2>&1 | sed 's,OpenSSH_\\([^ ,]*\\).*,\\1,'",
        'mkdir -p /run/sshd; exec $(command -v sshd) -D -e -p 7000 -h "$DATA/host" -o PidFile=none'
        ' -o StrictModes=no -o AuthorizedKeysFile="$DATA/key.pub" -o PermitRootLogin=yes -o UsePAM=no',
        'ssh -q -F none -i "$DATA/key" -p 7000 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null'
        ' -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=4 root@$VIP cat "$DATA/blob" >got',
        WHOLE,
        prepare="ssh-keygen -q -t ed25519 -N '' -f key && ssh-keygen -q -t ed25519 -N '' -f host && chmod 600 key host",
    ),
)
