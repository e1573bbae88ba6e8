"""Web servers and proxies."""

from __future__ import annotations

from typing import Final

from nfq_failover.lab.campaign.programs.case import WHOLE, Program

_NGINX = """
cat >nginx.conf <<END
daemon off; worker_processes 1; pid $PWD/pid; error_log stderr; user root;
events {}
http {
  access_log off; keepalive_requests 1000000; client_body_temp_path $PWD; proxy_temp_path $PWD;
  fastcgi_temp_path $PWD; uwsgi_temp_path $PWD; scgi_temp_path $PWD;
  server { listen LISTEN; root $DATA; TLS }
}
END
exec nginx -p "$PWD" -c "$PWD/nginx.conf" -e stderr
"""
_PLAIN = _NGINX.replace("LISTEN", "7000").replace("TLS", "")
_BEHIND = _NGINX.replace("LISTEN", "127.0.0.1:9000").replace("TLS", "").replace("exec nginx", "nginx") + "\n"
_TLS = _NGINX.replace("LISTEN", "7000 ssl").replace(
    "TLS", "ssl_certificate $DATA/cert.pem; ssl_certificate_key $DATA/key.pem;"
)
_NGINX_VERSION = "nginx -v 2>&1 | sed 's,.*/,,'"
_CURL = 'curl -sS -m 60 -o got "http://$VIP:7000/blob"'
_AB = 'ab -q -k -c 10 -n 3000 "http://$VIP:7000/small" >out'
_AB_CHECK = (
    "grep -q 'Failed requests: *0$' out || { grep Failed out; exit 1; }; grep -q 'Complete requests: *3000$' out"
)
_PAGE = "head -c 600 small >page"
_FAST = "unlimited"  # so that the servers are the brake, and the replica is late
_APACHE = """
cat >apache.conf <<END
ServerRoot $PWD
ServerName service
PidFile $PWD/pid
Mutex file:$PWD
Listen 7000
ErrorLog /dev/stderr
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
DocumentRoot $DATA
MaxKeepAliveRequests 0
END
exec apache2 -f "$PWD/apache.conf" -X
"""

PROGRAMS: Final = (
    Program(
        "nginx (curl)",
        ("nginx", "curl"),
        ("nginx", "curl"),
        _NGINX_VERSION,
        _PLAIN,
        _CURL,
        WHOLE,
    ),
    Program(
        "nginx (ab -k)",
        ("nginx", "apache2-utils"),
        ("nginx", "ab"),
        _NGINX_VERSION,
        _PLAIN,
        _AB,
        _AB_CHECK,
        warm_s=0.5,
        spread_s=3.0,
    ),
    Program(
        "nginx (wrk)",
        ("nginx", "wrk"),
        ("nginx", "wrk"),
        _NGINX_VERSION,
        _PLAIN,
        'wrk -c 10 -t 1 -d 6s "http://$VIP:7000/small" >out',
        "! grep -E 'Socket errors|Non-2xx' out",
    ),
    Program(
        "nginx (ab -k -c 50)",
        ("nginx", "apache2-utils"),
        ("nginx", "ab"),
        _NGINX_VERSION,
        _PLAIN,
        'ab -q -r -k -c 50 -t 7 -n 500000 "http://$VIP:7000/page" >out',
        "grep -q 'Failed requests: *0$' out || { grep Failed out; exit 1; }",
        _PAGE,
        _FAST,
        0.5,
        3.0,
    ),
    Program(
        "nginx (wrk -c 50)",
        ("nginx", "wrk"),
        ("nginx", "wrk"),
        _NGINX_VERSION,
        _PLAIN,
        'wrk -c 50 -t 1 -d 7s "http://$VIP:7000/page" >out',
        "! grep -E 'Socket errors|Non-2xx' out",
        _PAGE,
        _FAST,
        0.5,
        3.0,
    ),
    Program(
        "nginx with TLS (curl)",
        ("nginx", "curl", "openssl"),
        ("nginx", "curl", "openssl"),
        _NGINX_VERSION,
        _TLS,
        'curl -sS -k -m 30 -o got "https://$VIP:7000/blob"',
        WHOLE,
        prepare="openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=service -keyout key.pem -out cert.pem 2>/dev/null",
    ),
    Program(
        "lighttpd (wget)",
        ("lighttpd", "wget"),
        ("lighttpd", "wget"),
        "lighttpd -v | sed -n 's,lighttpd/\\([^ ]*\\).*,\\1,p'",
        'printf \'server.port = 7000\\nserver.document-root = "%s"\\n\' "$DATA" >conf; exec lighttpd -D -f conf',
        'wget -q -t 1 -T 60 -O got "http://$VIP:7000/blob"',
        WHOLE,
    ),
    Program(
        "apache2 (ab -k)",
        ("apache2", "apache2-utils"),
        ("apache2", "ab"),
        "apache2 -v | sed -n 's,.*Apache/\\([^ ]*\\).*,\\1,p'",
        _APACHE,
        _AB,
        _AB_CHECK,
        warm_s=0.5,
        spread_s=3.0,
    ),
    Program(
        "webfs (curl)",
        ("webfs", "curl"),
        ("webfsd", "curl"),
        "dpkg-query -W -f '${Version}' webfs",
        'exec webfsd -F -p 7000 -r "$DATA"',
        _CURL,
        WHOLE,
    ),
    Program(
        "python3 -m http.server (curl)",
        ("python3", "curl"),
        ("python3", "curl"),
        "python3 -c 'import platform; print(platform.python_version())'",
        'exec python3 -m http.server 7000 --directory "$DATA"',
        _CURL,
        WHOLE,
    ),
    Program(
        "haproxy before nginx (curl)",
        ("haproxy", "nginx", "curl"),
        ("haproxy", "nginx", "curl"),
        "haproxy -v | sed -n 's,.*version \\([^ ]*\\).*,\\1,p'",
        _BEHIND.replace("daemon off", "daemon on")
        + """
cat >haproxy.cfg <<END
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend all
  bind :7000
  default_backend local
backend local
  server one 127.0.0.1:9000
END
exec haproxy -db -f haproxy.cfg
""",
        _CURL,
        WHOLE,
    ),
    Program(
        "varnish before nginx (curl)",
        ("varnish", "nginx", "curl"),
        ("varnishd", "nginx", "curl"),
        "varnishd -V 2>&1 | sed -n 's,.*varnish-\\([^ ]*\\) .*,\\1,p'",
        _BEHIND.replace("daemon off", "daemon on")
        + 'exec varnishd -F -a :7000 -b 127.0.0.1:9000 -n "$PWD/work" -s malloc,64m -j none',
        _CURL,
        WHOLE,
    ),
)
