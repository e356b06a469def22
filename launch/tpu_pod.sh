#!/usr/bin/env bash
# Trains on a slice of a Cloud TPU pod: creates the slice, installs this commit of ferjax on all its
# hosts, runs ferjax.main there, copies the run's folder here, and deletes the slice, also after a
# failure.
#   launch/tpu_pod.sh --name=faces --zone=us-west4-a --type=v5litepod-16 --dry-run -- --config=configs/lanet.py
#   --project=P     the project of Google Cloud; default: gcloud's own default
#   --version=V     runtime of the TPU hosts; default: v2-alpha-tpuv5-lite
#   --spot          cheaper, but the slice may be taken away
#   --queued        wait in the queue (queued-resources) until a slice is free
#   --setup=COMMAND run on every host before training, in the folder of ferjax: mounts the disk that
#                   all hosts share, such as 'sudo mkdir -p runs && sudo mount 10.0.0.2:/share runs'
#   --out=DIR       the folder for the copy of the run's folder, from the current folder; default: runs
#   --keep          do not delete the slice
#   --dry-run       print the commands and do nothing
# Flags after -- go to ferjax.main. --config.parallel.backend=shard_map is added unless a backend is
# given, because pmap converts between the arrays of a host and of all hosts at every step. The
# workdir (runs/<name> without --workdir) must be on a disk that all hosts share, because they save
# one checkpoint together: mount yours with --setup. To continue a run that stopped, give the same
# command again. Needs gcloud, logged in, and a shell that stays open (tmux).
set -euo pipefail

fail() {
  echo "launch/tpu_pod.sh: $1" >&2
  exit 2
}

name='' zone='' type='' project='' version=v2-alpha-tpuv5-lite setup='' out=runs
spot='' queued='' keep='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --keep) keep=1 ;;
    --dry-run) dry=1 ;;
    --help | -h)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
      exit
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument $1 (flags of ferjax.main go after --)" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || fail "--name='$name': give lower-case letters, digits and -, such as faces-1"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone='$zone': give a zone, such as us-west4-a"
[[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || fail "--type='$type': give an accelerator type, such as v5litepod-16"
[[ -n $version && -n $out ]] || fail '--version and --out must not be empty'
config='' workdir='' backend=''
for flag in "$@"; do
  case $flag in
    --config=*) config=$flag ;;
    --config.parallel.backend*) backend=$flag ;;
    --workdir=*) workdir=${flag#*=} ;;
    --workdir) fail 'write --workdir=FOLDER as one argument' ;;
  esac
done
[ -n "$config" ] || fail 'give the flags of ferjax.main after --, including --config=configs/NAME.py'
if [ -z "$workdir" ]; then
  workdir=runs/$name
  set -- "$@" "--workdir=$workdir"
fi
[ -n "$backend" ] || set -- "$@" --config.parallel.backend=shard_map
[ -n "$dry" ] || command -v gcloud >/dev/null || fail 'gcloud is not installed: https://cloud.google.com/sdk/docs/install'
[[ $out == /* ]] || out=$PWD/$out
cd "$(dirname "$0")/.."

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
tpu=(gcloud --quiet compute tpus)

call() {
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_=:./,@+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  echo "${line# }"
  [ -n "$dry" ] || "$@"
}

on_all() { call "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

archive=$(mktemp -d)
created=''
finish() {
  code=$?
  trap - EXIT
  trap '' INT TERM HUP # ignore a second Ctrl-C, as gcloud does: the slice costs money until deleted
  rm -rf "$archive"
  if [ -n "$created" ] && [ -z "$keep" ]; then
    if [ -n "$queued" ]; then
      call "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force || code=$?
    else
      call "${tpu[@]}" tpu-vm delete "$name" "${where[@]}" || code=$?
    fi
    [ "$code" -eq 0 ] || echo "check that nothing is left: gcloud compute tpus tpu-vm list ${where[*]}" >&2
  elif [ -n "$created" ]; then
    echo "not deleted, and costs money until it is: $name in $zone" >&2
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

not_made() { # such as if the name is taken: then the slice belongs to somebody else, and is kept
  created=''
  fail "not created; see which slices exist: gcloud compute tpus tpu-vm list ${where[*]}"
}

created=1
if [ -n "$queued" ]; then
  call "${tpu[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${spot:+--spot} || not_made
  look=("${tpu[@]}" queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
  call "${look[@]}" # until the state is ACTIVE
  while [ -z "$dry" ]; do
    state=$("${look[@]}")
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) fail "the queued resource is $state" ;;
    esac
    sleep 30
  done
else
  call "${tpu[@]}" tpu-vm create "$name" "${where[@]}" \
    --accelerator-type="$type" --version="$version" ${spot:+--spot} || not_made
fi

call git archive --format=tar.gz --output="$archive/ferjax.tar.gz" HEAD
call "${tpu[@]}" tpu-vm scp "$archive/ferjax.tar.gz" "$name:" "${where[@]}" --worker=all
on_all 'mkdir -p ferjax && tar -xzf ferjax.tar.gz -C ferjax && { python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" || { sudo apt-get -q update && sudo apt-get -qy install python3.11 python3.11-venv; }; }'
on_all 'cd ferjax && . launch/setup.sh && FERJAX_EXTRA=tpu install_ferjax'
[ -z "$setup" ] || on_all "cd ferjax && $setup"
code=0
on_all "cd ferjax && .venv/bin/python launch/watch.py -- .venv/bin/python -m ferjax.main$(printf ' %q' "$@")" || code=$?
[ "$code" -eq 0 ] || echo "the run ended with exit code $code; its folder is copied" >&2
call mkdir -p "$out"
remote=$workdir
[[ $remote == /* ]] || remote=ferjax/$remote
call "${tpu[@]}" tpu-vm scp --recurse "$name:$remote" "$out" "${where[@]}" --worker=0 || code=${code/#0/1}
exit "$code"
