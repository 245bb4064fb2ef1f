#!/usr/bin/env bash
# The first process of a node, in its namespaces; cluster.sh starts it:
#   node.sh ROOT CLUSTER SUBNET LINK NODE
# shellcheck disable=SC2016,SC2086  # text is evaluated later
set -euo pipefail
ROOT=$1 CLUSTER=$2 SUBNET=$3 LINK=$4 NODE=$5

wait_for() {  # seconds, command: until it succeeds
    local end=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do ((SECONDS < end)) || return 1; sleep 0.05; done
}

connect() {  # the node's network; file 8 is the one in which the other end of its cable is
    local outside=/proc/self/fd/8 port number
    ip link set lo up
    if [[ $NODE == head ]]; then
        port=switch
        # A fixed address: by itself a bridge takes the lowest of its ports', and changes it when that node dies.
        ip link add switch address 02:00:00:00:00:fd type bridge
        ip addr add "$SUBNET.253/24" dev switch
        ip link add uplink type veth peer name "$LINK" netns $outside
        ip link set uplink master switch up
        ip link set switch up
        nsenter --net=$outside sh -c "ip addr add $SUBNET.254/24 dev $LINK && ip link set $LINK up"
    else
        port=eth0 number=$((10#${NODE#node}))
        nsenter --net=$outside ip link del "$NODE" 2>/dev/null || true  # of its life before, not yet cleared away
        # A fixed address too: who talked to the node before it died would send to its former one for some seconds.
        ip link add eth0 address "$(printf 02:00:00:00:00:%02x "$number")" type veth peer name "$NODE" netns $outside
        nsenter --net=$outside ip link set "$NODE" master switch up
        ip addr add "$SUBNET.$number/24" dev eth0
        ip link set eth0 up
    fi
    # That a machine no longer answers is known after 0.8 s instead of 10: Slurm notices a death in 6-12 s, not in 30.
    (cd "/proc/sys/net/ipv4/neigh/$port" && echo 1000 >base_reachable_time_ms && echo 200 >retrans_time_ms &&
        echo 1 >ucast_solicit && echo 1 >delay_first_probe_time)
}

run_head() {
    local database=(mariadb --no-defaults --socket="$ROOT/run/mariadb.sock" --user=root)
    munged --foreground --force --num-threads=10 --key-file="$ROOT/munge/key" --socket="$ROOT/run/munge.sock" \
        --pid-file="$ROOT/run/munged.pid" --seed-file="$ROOT/munge/seed" 2>"$ROOT/log/munged.log" &
    if [[ ! -d $ROOT/database ]]; then
        rm -rf "$ROOT/database.new"
        mariadb-install-db --no-defaults --user=root --datadir="$ROOT/database.new" --skip-test-db \
            --auth-root-authentication-method=normal >"$ROOT/log/mariadb-install-db.log" 2>&1
        mv "$ROOT/database.new" "$ROOT/database"
    fi
    mariadbd --no-defaults --user=root --datadir="$ROOT/database" --socket="$ROOT/run/mariadb.sock" \
        --bind-address=127.0.0.1 --pid-file="$ROOT/run/mariadbd.pid" --log-error="$ROOT/log/mariadbd.log" \
        --skip-log-bin --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF --skip-name-resolve &
    wait_for 60 eval '! kill -0 $! || "${database[@]}" -e "select 1"'
    "${database[@]}" -e "create database if not exists slurm_accounting;
        grant all on slurm_accounting.* to slurm@127.0.0.1 identified by 'slurm'"
    slurmdbd -D &
    wait_for 60 eval '! kill -0 $! || sacctmgr -n list cluster'
    sacctmgr -n list cluster | grep "[^ ]" || sacctmgr -i -Q add cluster "$CLUSTER"
    slurmctld -D &
    wait_for 60 eval '! kill -0 $! || scontrol ping | grep "is UP"'
    kill -0 $!
    touch "$ROOT/run/started"
    wait
}

main() {
    hostname "$NODE"
    mount --bind "$ROOT/etc/hosts" /etc/hosts
    mount -t tmpfs tmpfs /dev/shm
    connect
    exec 8>&-
    # Not exec: a first process has to clear away what others leave behind, which slurmd does not.
    if [[ $NODE == head ]]; then run_head; else slurmd -D -N "$NODE"; fi
}

main
exit
