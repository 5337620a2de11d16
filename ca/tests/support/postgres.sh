#!/bin/sh
# A private PostgreSQL for tests, in the folder $1, at port $2 of the loopback address and a Unix socket in that folder; the
# rest are options of the server. It lives as long as standard input is open: "restart" there kills every process of it and
# starts it again, "stop" and "start" do one of both; each is answered by a line.
set -eu
trap : INT TERM
dir=$1 port=$2
shift 2
bin=
for candidate in /usr/local/pgsql/bin /usr/local/bin /usr/bin /usr/lib/postgresql/*/bin; do
    [ -x "$candidate/pg_ctl" ] && [ -x "$candidate/initdb" ] && bin=$candidate
done
[ -n "$bin" ] || { echo "there is no PostgreSQL server here; install Debian's package postgresql"; exit 1; }
# PostgreSQL refuses to run as root.
as=
if [ "$(id -u)" = 0 ]; then
    chown -R nobody "$dir"
    as="setpriv --reuid=nobody --regid=$(id -g nobody) --clear-groups"
fi
finish() {
    $as "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1 || :
    rm -rf "$dir"
}
trap finish EXIT
start() {
    $as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w start \
        -o "-k $dir -p $port -c listen_addresses=127.0.0.1 -c max_connections=200 $*" >/dev/null || cat "$dir/log"
}
cd "$dir"
$as "$bin/initdb" -D "$dir/data" -U ca --auth=trust --no-sync -E UTF8 --locale=C >/dev/null
start "$@"
echo ready
while read -r command; do
    case $command in
        restart | stop) $as "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null || : ;;
    esac
    case $command in
        restart | start) start "$@" ;;
    esac
    echo done
done
