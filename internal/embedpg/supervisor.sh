# Supervises the PostgreSQL server of the owner (the Go process). $1 is the folder of the
# server's binaries, $2 the run folder. Reads commands from stdin and answers each with "ok" or
# "failed". Details go to the log.
#
# Only the owner has the other end of stdin. So end of file means that the owner has ended, and
# that all its files must be removed.

# Ctrl-C in a terminal and a service manager's kill reach all processes. Only the end of the
# owner counts here. PIPE: an answer to a dead owner must not end the script before it has
# cleaned up.
trap '' HUP INT TERM PIPE

bin=$1 run=$2 data=$2/data log=$2/log

initialise() {
    "$bin/initdb" --pgdata="$data" --username=postgres --pwfile="$run/password" \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync &&
        cat "$run/settings" >>"$data/postgresql.conf"
}

# 3>&- keeps the run folder's lock out of the server: the lock means that the owner or the
# supervisor lives, and a server without both must not hold it.
start() {
    "$bin/pg_ctl" start -D "$data" -l "$log" -w -t 30 -o "-p $1" 3>&-
}

# A server that does not react (for example after SIGSTOP) is killed. Its children notice that
# and exit.
stop() {
    [ -f "$data/postmaster.pid" ] || return 0
    "$bin/pg_ctl" stop -D "$data" -m immediate -w -t 10 && return 0
    read -r pid <"$data/postmaster.pid" && kill -KILL "$pid"
    return 0
}

while read -r verb argument; do
    case $verb in
    initialise) initialise ;;
    start) start "$argument" ;;
    stop) stop ;;
    *) false ;;
    esac </dev/null >>"$log" 2>&1 && echo ok || echo failed
done

stop </dev/null >>"$log" 2>&1

# The children of a killed server may still be writing for a moment.
cd /
for _ in 1 2 3 4 5; do
    rm -rf "$run" && exit 0
    sleep 1
done
exit 1
