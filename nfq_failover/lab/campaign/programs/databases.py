"""Databases, caches and queues."""

from __future__ import annotations

from typing import Final

from nfq_failover.lab.campaign.programs.case import Program, in_order

_PG = "$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)"
_PG_VERSION = f"{_PG}/postgres --version | sed 's,[^0-9]*\\([0-9.]*\\).*,\\1,'"
_AS_POSTGRES = "setpriv --reuid postgres --regid postgres --clear-groups"
_PG_PREPARE = f"""
chmod 755 . ..; install -d -o postgres db
{_AS_POSTGRES} {_PG}/initdb -A trust -E UTF8 --locale C --no-sync -D "$PWD/db" >/dev/null
echo "host all all 0.0.0.0/0 trust" >>db/pg_hba.conf
{_AS_POSTGRES} {_PG}/pg_ctl -s -w -D "$PWD/db" -o "-h '' -k $PWD/db -F" start >/dev/null
psql -q -h "$PWD/db" -U postgres -c 'CREATE TABLE t (n serial, v int)'
pgbench -q -i -s 1 -h "$PWD/db" -U postgres postgres >/dev/null 2>&1
{_AS_POSTGRES} {_PG}/pg_ctl -s -w -D "$PWD/db" stop
"""
_PG_SERVE = f"""
cp -a "$DATA/db" . && chmod 755 .
exec {_AS_POSTGRES} {_PG}/postgres -D "$PWD/db" -h 0.0.0.0 -p 7000 -k "$PWD/db" -F
"""
_MARIADB_SERVE = """
cp -a "$DATA/db" . && chown -R mysql . && chmod 755 .
exec mariadbd --no-defaults --user=mysql --datadir="$PWD/db" --socket="$PWD/sock" --pid-file="$PWD/pid" \\
    --port=7000 --bind-address=0.0.0.0 --skip-name-resolve --innodb-flush-log-at-trx-commit=0
"""
_REDIS = 'exec redis-server --port 7000 --protected-mode no --save "" --appendonly no --dir "$PWD"'
_REDIS_VERSION = "redis-server --version | sed 's,.*v=\\([^ ]*\\).*,\\1,'"
_NC = "nc -q 1 $VIP 7000"

PROGRAMS: Final = (
    Program(
        "redis (redis-cli -r)",
        ("redis-server", "redis-tools"),
        ("redis-server", "redis-cli"),
        _REDIS_VERSION,
        _REDIS,
        "redis-cli -h $VIP -p 7000 -r 60 -i 0.1 INCR n >got",
        in_order(60),
    ),
    Program(
        "redis (redis-cli, commands from a pipe)",
        ("redis-server", "redis-tools"),
        ("redis-server", "redis-cli"),
        _REDIS_VERSION,
        _REDIS,
        "for i in $(seq 60); do echo INCR n; sleep 0.1; done | redis-cli -h $VIP -p 7000 >got",
        in_order(60),
    ),
    Program(
        "redis (redis-benchmark)",
        ("redis-server", "redis-tools"),
        ("redis-server", "redis-benchmark"),
        _REDIS_VERSION,
        _REDIS,
        "timeout 60 redis-benchmark -h $VIP -p 7000 -c 10 -n 20000 -d 100 -t set,get --csv >got 2>err",
        '[ "$(wc -l <got)" = 3 ] || { cat got err; exit 1; }',
        warm_s=0.5,
    ),
    Program(
        "PostgreSQL (psql)",
        ("postgresql",),
        ("psql", "pgbench"),
        _PG_VERSION,
        _PG_SERVE,
        "for i in $(seq 60); do echo 'INSERT INTO t (v) VALUES (1) RETURNING n;'; sleep 0.1; done |"
        " psql -q -t -A -v ON_ERROR_STOP=1 -h $VIP -p 7000 -U postgres >got",
        in_order(60),
        prepare=_PG_PREPARE,
    ),
    Program(
        "PostgreSQL (pgbench -S)",
        ("postgresql",),
        ("psql", "pgbench"),
        _PG_VERSION,
        _PG_SERVE,
        "pgbench -n -S -c 5 -t 3000 -h $VIP -p 7000 -U postgres postgres >out 2>err",
        "grep -q 'processed: 15000/15000' out || { cat out err; exit 1; }",
        prepare=_PG_PREPARE,
        warm_s=0.5,
    ),
    Program(
        "PostgreSQL (pgbench -S, sslmode=disable)",
        ("postgresql",),
        ("psql", "pgbench"),
        _PG_VERSION,
        _PG_SERVE,
        "export PGSSLMODE=disable; pgbench -n -S -c 5 -t 3000 -h $VIP -p 7000 -U postgres postgres >out 2>err",
        "grep -q 'processed: 15000/15000' out || { cat out err; exit 1; }",
        prepare=_PG_PREPARE,
        warm_s=0.5,
    ),
    Program(
        "MariaDB (mariadb)",
        ("mariadb-server", "mariadb-client"),
        ("mariadbd", "mariadb"),
        "mariadbd --version | sed 's,.*Ver \\([^ ]*\\).*,\\1,'",
        _MARIADB_SERVE,
        "for i in $(seq 60); do echo 'INSERT INTO t (v) VALUES (1); SELECT LAST_INSERT_ID();'; sleep 0.1; done |"
        " mariadb --no-defaults -n -N -B -h $VIP -P 7000 -u any test >got",
        in_order(60),
        prepare="""
mariadb-install-db --no-defaults --auth-root-authentication-method=normal --skip-test-db --datadir="$PWD/db" >/dev/null
cat >init.sql <<END
CREATE DATABASE test;
CREATE TABLE test.t (n INT AUTO_INCREMENT PRIMARY KEY, v INT);
FLUSH PRIVILEGES;
CREATE USER 'any'@'%';
GRANT ALL ON test.* TO 'any'@'%';
SHUTDOWN;
END
chown -R mysql . && chmod 755 . ..
mariadbd --no-defaults --user=mysql --datadir="$PWD/db" --socket="$PWD/sock" --pid-file="$PWD/pid" --skip-networking \\
    --init-file="$PWD/init.sql" >/dev/null 2>&1
""",
    ),
    Program(
        "memcached (nc)",
        ("memcached", "netcat-openbsd"),
        ("memcached", "nc"),
        "memcached -V | cut -d ' ' -f 2",
        "exec memcached -u memcache -p 7000 -U 0",
        "{ printf 'set n 0 0 1\\r\\n0\\r\\n'; for i in $(seq 60); do printf 'incr n 1\\r\\n'; sleep 0.1; done; } |"
        f" {_NC} | tr -d '\\r' | grep -v STORED >got",
        in_order(60),
    ),
    Program(
        "beanstalkd (nc)",
        ("beanstalkd", "netcat-openbsd"),
        ("beanstalkd", "nc"),
        "beanstalkd -v | cut -d ' ' -f 2",
        "exec beanstalkd -l 0.0.0.0 -p 7000",
        "for i in $(seq 60); do printf 'put 0 0 60 3\\r\\nabc\\r\\n'; sleep 0.1; done |"
        f" {_NC} | tr -d '\\r' | sed 's,INSERTED ,,' >got",
        in_order(60),
    ),
)
