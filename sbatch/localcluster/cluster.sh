#!/usr/bin/env bash
# A real Slurm of 16 nodes x 8 GPUs (device files that cannot compute) on one machine, to try and test jobs on.
#
#   cluster.sh [--name NAME] COMMAND
#     up                  start it, or what is missing of it; jobs of a cluster that was not ended by `down` go on
#     down                end it and remove everything, its queue and accounting too
#     status              partitions, nodes and jobs
#     env                 the line that points Slurm's commands to it: eval "$(bash cluster.sh env)"
#     in NODE COMMAND...  run something on a node: node01 to node16, or head
#     kill-node NODE      the node dies: all its processes and its network; Slurm finds out by itself
#     fail-node NODE      the same, and Slurm is told at once
#     start-node NODE     it comes back
#     kill-controller     slurmctld dies
#     start-controller    it comes back and goes on with the jobs it knew
#     --name NAME         a cluster of its own beside the first (onevision)
#     --subnet A.B.C      addresses for `up`, where those it takes by itself are in use
#
# Every node, and the head with slurmctld, slurmdbd, mariadbd and munged, is one `unshare` with namespaces of its own
# for processes, network, hostname, IPC and mounts: killing one process is the crash of a machine and leaves nothing
# behind. The nodes hang on a bridge inside the head, which this machine reaches by one interface: no port is taken
# here, and no firewall rule of this machine lies between the nodes. There are no pid files: what runs is what the
# process table says. Needs root and Debian 12's Slurm; no systemd, no cgroups; /etc is not touched.
# shellcheck disable=SC2086,SC2046,SC2016  # numbers and names are split into words, some text is evaluated later
set -euo pipefail
umask 022
# Whatever the caller's Slurm is, and options for its jobs: not ours.
unset "${!SLURM@}" "${!SBATCH@}" "${!SRUN@}" "${!SALLOC@}" "${!SINFO@}" "${!SQUEUE@}" "${!SACCT@}" "${!SCONTROL@}"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BASE=/var/tmp/onevision-slurm
PACKAGES="slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core iproute2 procps util-linux"

say() { echo "cluster $NAME: $*"; }
refuse() { say "$*" >&2; exit 2; }

failed() {  # what failed, logs: with the lines that say why
    trap - ERR
    say "$1; $ROOT/log has more than these lines:" >&2
    (cd "$ROOT/log" && tail -qn 40 $2 2>/dev/null |
        grep -iE 'error|fatal|cannot|denied|unable|invalid|fail|permitted' | grep -viE 'pmix|mpi:|state (save )?file' |
        tail -n 12 | sed 's/^/    /') >&2 || true
    exit 1
}

wait_for() {  # seconds, command: until it succeeds
    local end=$((SECONDS + $1))
    until "${@:2}" >/dev/null 2>&1; do ((SECONDS < end)) || return 1; sleep 0.2; done
}

names() { printf 'node%02d ' {1..16}; }

boxes() {  # "pid node" of what runs of this cluster, the head included
    { pgrep --ns $$ --nslist pid -af "^unshare .*node\.sh $ROOT .*(head|node[0-9]+)$" || true; } |
        awk '{print $1, $NF}'
}
box() { boxes | awk -v node="$1" '$2 == node {print $1; found = 1} END {exit !found}'; }
missing() { comm -13 <(boxes | awk '{print $2}' | sort) <(names | tr ' ' '\n' | grep . | sort); }
answers() { timeout 10 scontrol ping 2>/dev/null | grep "is UP" >/dev/null; }
node_states() { sinfo -h -N -p gpu -o '%N %T'; }
nodes_answer() { [[ $(node_states | grep -cvE 'down|unk|fail|boot|\*') == 16 ]]; }
accounts() { timeout 20 sacctmgr -n list cluster >/dev/null 2>&1; }  # asks munged, slurmdbd and mariadbd

kill_boxes() {  # pids: killing the first process inside kills all inside; unshare ends when they are gone
    local ids=$* end=$((SECONDS + 5)) left
    [[ $ids ]] || return 0
    pkill -KILL --parent "${ids// /,}" || true
    while left=$(boxes | grep -E "^(${ids// /|}) " | cut -d' ' -f1); do
        ((SECONDS < end)) || kill -KILL $left 2>/dev/null || true
        sleep 0.1
    done
}

kill_all() {
    kill_boxes $(boxes | cut -d' ' -f1)
    ip link del "$LINK" 2>/dev/null || true  # goes with the head, but only a moment later
}

in_box() {  # node, command...: in all namespaces of the node
    local pid
    pid=$(box "$1") || refuse "$1 does not run"
    pid=$(pgrep --parent "$pid")
    nsenter --target "$pid" --net --uts --ipc --mount --pid "${@:2}"
}

start_box() (  # node, pid of a process in whose network the other end of its cable is
    cd /
    for file in "/proc/$BASHPID/fd/"*; do  # nothing of the caller's stays open: locks, pipes that somebody reads
        file=${file##*/}
        if ((file > 2 && file < 255)); then eval "exec $file>&-"; fi
    done
    # A clean environment and default signals: tasks inherit them. A higher priority: see PropagatePrioProcess.
    exec setsid --fork env -i --default-signal PATH="$PATH" LANG=C.UTF-8 HOME=/root SLURM_CONF="$SLURM_CONF" \
        nice -n -10 unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc \
        bash "$HERE/node.sh" "$ROOT" "$CLUSTER" "$SUBNET" "$LINK" "$1" \
        8<"/proc/$2/ns/net" </dev/null >"$ROOT/log/$1.log" 2>&1
)

prepare() {  # refuse where it cannot work; one `up` or `down` at a time
    local command missing="" log
    [[ $EUID == 0 ]] || refuse "needs root: run it with sudo"
    for command in slurmctld slurmd slurmdbd scontrol sinfo munged mariadbd mariadb mariadb-install-db \
        ip pgrep unshare nsenter flock; do
        command -v "$command" >/dev/null || missing+=" $command"
    done
    [[ -z $missing ]] || refuse "not installed:$missing; apt-get install --no-install-recommends $PACKAGES"
    log=$(unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc ip link add type veth 2>&1) ||
        refuse "no permission for namespaces and network links here, needs a machine or a privileged container: $log"
    mkdir -p "$BASE"
    [[ -O $BASE && ! -L $BASE ]] || refuse "$BASE belongs to somebody else: remove it"
    exec 9<"$BASE"
    flock --wait 120 9 || refuse "another up or down has been running for two minutes: wait for it, or end it"
    log=$(rm -f "$BASE/probe" && mknod "$BASE/probe" c 1 3 2>&1 && rm "$BASE/probe") ||
        refuse "no permission for device files here, needs a machine or a privileged container: $log"
}

check_subnet() {
    local used
    used=$({ ip -4 route show root "$SUBNET.0/24"; ip -4 route show match "$SUBNET.0/24"; } |
        awk '!/^default/ {print $1, $2, $3}' | sort -u | paste -sd,)
    [[ -z $used ]] || refuse "$SUBNET.0/24 is in use ($used): choose another, such as up --subnet 172.29.$OCTET"
}

fill() {  # template, further sed expressions
    sed -e "s|@ROOT@|$ROOT|g; s|@CLUSTER@|$CLUSTER|g; s|@SUBNET@|$SUBNET|g" "${@:2}" "$HERE/$1.in"
}

write_files() {
    local node
    rm -rf "$ROOT/run" "$ROOT/munge"  # sockets and locks of what no longer runs
    mkdir -p "$ROOT"/{etc,run,log,state} && mkdir -m 700 "$ROOT/munge"
    echo "$SUBNET" >"$ROOT/subnet"
    head -c 1024 /dev/urandom >"$ROOT/munge/key" && chmod 400 "$ROOT/munge/key"
    { echo "127.0.0.1 localhost"; echo "$SUBNET.253 head"; echo "$SUBNET.254 $(hostname)"
      for node in $(names); do echo "$SUBNET.$((10#${node#node})) $node"; done; } >"$ROOT/etc/hosts"
    fill slurm.conf -e "s|@FIRST_JOB@|$(($(date +%s) % 6000000 * 10 + 1000))|" >"$ROOT/etc/slurm.conf"
    cp "$HERE/cgroup.conf.in" "$ROOT/etc/cgroup.conf"
    cp "$HERE/mpi.conf.in" "$ROOT/etc/mpi.conf"
    for node in $(names); do fill gres.conf -e "s|@NODE@|$node|g; /^#/d"; done >"$ROOT/etc/gres.conf"
    (umask 077 && fill slurmdbd.conf >"$ROOT/etc/slurmdbd.conf")
}

start_nodes() {  # nodes that do not run
    local node gpu head known
    head=$(box head)
    # Slurm still believes in nodes that died a moment ago: their jobs would wait for tasks that are gone.
    known=$(node_states | awk -v nodes=" $* " 'index(nodes, " " $1 " ") && $2 !~ /down|unk/ {print $1}' | paste -sd,)
    [[ -z $known ]] || scontrol update nodename="$known" state=down reason="started again"
    for node; do
        mkdir -p "$ROOT/nodes/$node/dev" "$ROOT/nodes/$node/spool"
        for gpu in {0..7}; do  # the numbers of /dev/null
            [[ -e $ROOT/nodes/$node/dev/nvidia$gpu ]] || mknod "$ROOT/nodes/$node/dev/nvidia$gpu" c 1 3
        done
        start_box "$node" "$head"
    done
}

start_controller() {
    in_box head env -i --default-signal PATH="$PATH" LANG=C.UTF-8 HOME=/root SLURM_CONF="$SLURM_CONF" \
        nice -n -10 slurmctld </dev/null >>"$ROOT/log/head.log" 2>&1 9<&- || true
    wait_for 60 answers || failed "slurmctld does not answer" head.log
}

start_head() {
    kill_all  # the nodes' cables end in the head
    check_subnet
    [[ ! -d $ROOT/database ]] || say "goes on with the queue and the accounting in $ROOT"
    say "starts the head (munged, mariadbd, slurmdbd, slurmctld) at $SUBNET.253"
    write_files
    start_box head $$
    wait_for 5 box head || failed "the head does not start" head.log
}

up() {
    local begin=$SECONDS nodes
    prepare
    set -E
    exec 3>&2  # traps run with the output of the command that they end
    trap 'failed "line $LINENO: $BASH_COMMAND" head.log 2>&3' ERR
    trap 'say "interrupted; up goes on with it, down removes it" >&3; exit 130' INT TERM
    if ! box head >/dev/null || { [[ -e $ROOT/run/started ]] && ! accounts; }; then
        start_head
    elif [[ -e $ROOT/run/started ]] && ! answers; then
        say "starts slurmctld again"
        start_controller
    fi
    wait_for 180 eval 'answers || ! box head'  # the head ends when one of its daemons does not start
    answers || failed "the head does not start" "head.log mariadb*.log"
    nodes=$(missing | xargs)
    if [[ -z $nodes ]] && nodes_answer; then
        say "already up"
    else
        [[ -z $nodes ]] || say "starts $(scontrol show hostlistsorted "${nodes// /,}")"
        start_nodes $nodes
        wait_for 20 eval '[[ -z $(missing) ]]' && wait_for 90 eval 'nodes_answer || [[ $(missing) ]]' || true
        nodes_answer || failed "nodes do not answer: $(sinfo -h -p gpu -o '%N %T' | paste -sd,)" "node??.log"
        say "up in $((SECONDS - begin)) s: 16 nodes x 8 GPUs; partitions gpu (default), urgent, cpu, short (10 minutes)"
    fi
    [[ $NAME != onevision ]] || cat <<TEXT

    make stage1_5 NODES=16          a job on all nodes
    make status                     what becomes of it
    eval "\$(bash sbatch/localcluster/cluster.sh env)"; sinfo; squeue
    bash sbatch/localcluster/cluster.sh kill-node node03      and watch
    make slurm-down                 ends it

TEXT
}

down() {
    prepare
    if [[ ! -e $ROOT && -z $(boxes) ]]; then say "is not up"; return; fi
    kill_all
    rm -rf "$ROOT"
    say "ended; $ROOT is removed"
}

status() {
    answers || refuse "is not up: bash sbatch/localcluster/cluster.sh up"
    sinfo
    squeue
}

need() {  # node or head: one of the names, of a cluster that is up
    [[ " head $(names) " == *" $1 "* ]] || refuse "no node '$1': they are node01 to node16"
    [[ $EUID == 0 ]] || refuse "needs root: run it with sudo"
    box head >/dev/null || refuse "is not up"
}

main() {
    NAME=onevision SUBNET=
    local command=""
    while (($#)); do
        case $1 in
        --name) NAME=${2:-}; shift $(($# > 1 ? 2 : 1)) ;;
        --subnet) SUBNET=${2:-none}; shift $(($# > 1 ? 2 : 1)) ;;
        *) [[ -z $command ]] || break; command=$1; shift ;;
        esac
    done
    [[ $NAME =~ ^[a-z][a-z0-9-]{0,19}$ ]] || refuse "a name has up to 20 small letters, digits and hyphens"
    ROOT=$BASE/$NAME
    OCTET=$(($(printf %s "$NAME" | cksum | cut -d' ' -f1) % 254 + 1))
    LINK=slurm-$(printf %s "$NAME" | md5sum | cut -c1-8)
    [[ $SUBNET ]] || SUBNET=$(cat "$ROOT/subnet" 2>/dev/null || echo "10.77.$OCTET")
    [[ $SUBNET =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "--subnet needs three numbers, such as 172.29.4; not '$SUBNET'"
    CLUSTER=localcluster
    [[ $NAME == onevision ]] || CLUSTER+=-$NAME
    export SLURM_CONF=$ROOT/etc/slurm.conf
    case $command in
    up) up ;;
    down) down ;;
    status) status ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    in)
        need "${1:-}"
        (($# > 1)) || refuse "in needs a command after the node"
        in_box "$1" bash -c 'cd "$0" 2>/dev/null; exec "$@"' "$PWD" "${@:2}" ;;
    kill-node) need "${1:-}"; kill_boxes "$(box "$1" || true)" ;;
    fail-node)
        need "${1:-}"
        kill_boxes "$(box "$1" || true)"
        scontrol update nodename="$1" state=down reason="fail-node" ;;
    start-node) need "${1:-}"; if box "$1" >/dev/null; then say "$1 already runs"; else start_nodes "$1"; fi ;;
    kill-controller) need head; in_box head pkill -KILL -x slurmctld || say "slurmctld does not run" ;;
    start-controller) need head; if answers; then say "slurmctld already runs"; else start_controller; fi ;;
    "" | help | --help | -h) sed -n '2,/^# shellcheck/{/shellcheck/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
    *) refuse "no command '$command': without one, the list of them is printed" ;;
    esac
}

main "$@"
exit
