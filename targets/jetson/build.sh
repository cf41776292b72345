#!/bin/sh
# Builds the TensorRT engine of this bundle on the device that will run it. The same file in every bundle; what differs
# stands in build.conf beside it.
#
#   ./build.sh            engines/NAME-PRECISION-trtVERSION.engine, with .layers.json and .json beside it
#   ./build.sh --print    only print the command
#
# TRTEXEC=/path/to/trtexec chooses the builder. Without it: trtexec in PATH, then /usr/src/tensorrt/bin/trtexec (where
# JetPack puts it), then TensorRT-RTX's tensorrt_rtx in PATH.
# Exit code: 0 done, 1 trtexec failed, 2 nothing was tried because something is wrong or missing.
set -eu
LC_ALL=C
export LC_ALL

refuse() { # MESSAGE...: what is wrong, then one line each of help
  printf 'build.sh: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 2
}

print_only=0
case $#:${1-} in
  0:) ;;
  1:--print) print_only=1 ;;
  *) refuse "unknown arguments: $*" "usage: ./build.sh [--print]" ;;
esac
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
conf=$here/build.conf

# -- build.conf: data, never executed --------------------------------------------------------------------------------
[ -f "$conf" ] || refuse "there is no build.conf beside build.sh" "copy the whole bundle"

bad() { refuse "build.conf: $key has a value that is not allowed" "got: $(printf '%s' "$value" | tr -cd '[:print:]')"; }
only() { case $value in *[!$1]*) bad ;; esac; } # CHARACTERS: as in a bracket expression
filled() { [ -n "$value" ] || bad; }
number() { # up to seven digits, not 0
  only 0-9
  case $value in '' | 0* | ????????*) bad ;; esac
}

seen=' '
NAME='' PRECISION='' INPUT='' SHAPE='' MIN_BATCH='' OPT_BATCH='' MAX_BATCH='' DYNAMIC='' WORKSPACE_MIB='' DLA=''
FLOAT_LAYERS='' BOARD=''
while IFS= read -r line || [ -n "$line" ]; do
  case $line in
    '' | '#'*) continue ;;
    *=*) ;;
    *) key=line value=$line && bad ;;
  esac
  key=${line%%=*} value=${line#*=}
  case $seen in *" $key "*) refuse "build.conf: $key stands there twice" ;; esac
  case $key in
    NAME) filled && only A-Za-z0-9._- && NAME=$value && case $value in [.-]*) bad ;; esac ;;
    PRECISION) PRECISION=$value && case $value in int8 | fp16 | fp32) ;; *) bad ;; esac ;;
    INPUT) filled && only A-Za-z0-9_./- && INPUT=$value ;;
    SHAPE)
      only 0-9x && SHAPE=$value
      case $value in 0* | *x0* | x* | *x | *xx* | *x*x*x*) bad ;; *x*x*) ;; *) bad ;; esac
      ;;
    MIN_BATCH) number && MIN_BATCH=$value ;;
    OPT_BATCH) number && OPT_BATCH=$value ;;
    MAX_BATCH) number && MAX_BATCH=$value ;;
    DYNAMIC) DYNAMIC=$value && case $value in 0 | 1) ;; *) bad ;; esac ;;
    WORKSPACE_MIB) number && WORKSPACE_MIB=$value ;;
    DLA) DLA=$value && case $value in '' | 0 | 1) ;; *) bad ;; esac ;;
    FLOAT_LAYERS) only A-Za-z0-9_./:+@,- && FLOAT_LAYERS=$value && case $value in ,* | *, | *,,*) bad ;; esac ;;
    BOARD) filled && only A-Za-z0-9._- && BOARD=$value ;;
    *) key=key value=${line%%=*} && bad ;;
  esac
  seen="$seen$key "
done <"$conf"
for key in NAME PRECISION INPUT SHAPE MIN_BATCH OPT_BATCH MAX_BATCH DYNAMIC WORKSPACE_MIB DLA FLOAT_LAYERS BOARD; do
  case $seen in *" $key "*) ;; *) refuse "build.conf: $key is missing" ;; esac
done
[ "$MIN_BATCH" -le "$OPT_BATCH" ] && [ "$OPT_BATCH" -le "$MAX_BATCH" ] ||
  refuse "build.conf: batches must not decrease" "got: $MIN_BATCH, $OPT_BATCH, $MAX_BATCH"

# -- the builder and its version -------------------------------------------------------------------------------------
if [ -n "${TRTEXEC-}" ]; then
  trtexec=$(command -v -- "$TRTEXEC") || refuse "TRTEXEC is not a program" "got: $TRTEXEC"
else
  trtexec=$(command -v trtexec || command -v /usr/src/tensorrt/bin/trtexec || command -v tensorrt_rtx) ||
    refuse "there is no trtexec" "JetPack has it in /usr/src/tensorrt/bin (apt install tensorrt)" \
      "or say where it is: TRTEXEC=/path/to/trtexec ./build.sh"
fi
case ${trtexec##*/} in *rtx*) rtx=true kind=rtx ;; *) rtx=false kind=trt ;; esac

# The help begins with a line such as "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --help".
help=$("$trtexec" --help 2>&1) || :
code=$(printf '%s\n' "$help" | sed -n 's/.*\[TensorRT[A-Za-z-]* v\([0-9][0-9.]*\)\].*/\1/p' | sed -n 1p)
case $code in
  '') refuse "cannot read the version from $trtexec --help" "it said: $(printf '%s\n' "$help" | sed -n 1p)" ;;
  *.*.*) version=$(printf '%s\n' "$code" | cut -d . -f 1-3) ;;
  *.*) refuse "cannot read the version from $trtexec --help" "got: $code" ;;
  ????) version=$((code / 1000)).$((code / 100 % 10)).$((code % 100)) ;;        # 8502 is 8.5.2
  *) version=$((code / 10000)).$((code / 100 % 100)).$((code % 100)) ;;          # 100300 is 10.3.0
esac
major=${version%%.*} minor=${version#*.}
minor=${minor%%.*}
case $kind$major in
  rtx1) ;;
  trt8) [ "$minor" -ge 2 ] || major=0 ;;
  trt10 | trt11) ;;
  *) major=0 ;;
esac
[ "$major" != 0 ] || refuse "this bundle cannot be built with TensorRT $version ($trtexec)" \
  "known: TensorRT 8.2 to 8.6, 10 and 11, TensorRT-RTX 1" "another one: TRTEXEC=/path/to/trtexec ./build.sh"

# -- the command -----------------------------------------------------------------------------------------------------
has() { case $help in *"$1"*) return 0 ;; *) return 1 ;; esac; } # OPTION: whether this trtexec lists it

# Before 10, and on a DLA always, layers take their types from flags; otherwise from the graph ("strongly typed").
typed=true
[ "$major" != 8 ] || typed=false
if [ -n "$DLA" ]; then
  typed=false
  [ "$PRECISION" = fp16 ] || refuse "a DLA runs this bundle with fp16 only, not with $PRECISION" \
    "TensorRT has no Q/DQ on a DLA, and a DLA no float32; export with --precision fp16, or without --dla"
  [ "$MIN_BATCH" = "$MAX_BATCH" ] || refuse "a DLA runs one batch size only" "got: $MIN_BATCH to $MAX_BATCH"
  case $kind$major-$minor in
    trt8-* | trt10-[0-7]) ;;
    *) refuse "TensorRT $version is not known to build for a DLA" \
      "known: TensorRT 8.2 to 10.7; or export without --dla" ;;
  esac
fi
model=model.onnx
[ "$typed" = false ] || [ "$PRECISION" = fp32 ] || model=typed.onnx
[ -f "$here/$model" ] || refuse "there is no $model beside build.sh" "copy the whole bundle"

engines=$here/engines
stem=$NAME-$PRECISION-$kind$version
if [ "$print_only" = 1 ]; then work=$engines; else work=$engines/.build.$$; fi

set -- "--onnx=$here/$model" "--saveEngine=$work/$stem.engine"
if [ "$typed" = true ]; then
  # TensorRT 11 and TensorRT-RTX know nothing else.
  [ "$kind$major" != trt10 ] || set -- "$@" --stronglyTyped
elif [ "$PRECISION" != fp32 ]; then
  [ "$PRECISION" != int8 ] || set -- "$@" --int8
  set -- "$@" --fp16
  if [ -n "$FLOAT_LAYERS" ]; then
    has --layerPrecisions || refuse "trtexec $version cannot keep single layers in float32, and this model needs it" \
      "layers: $FLOAT_LAYERS" "export with --precision fp32, or without --decode and --nms"
    set -- "$@" --precisionConstraints=obey \
      "--layerPrecisions=$(printf '%s\n' "$FLOAT_LAYERS" | sed 's/,/:fp32,/g; s/$/:fp32/')"
  fi
fi
if [ "$DYNAMIC" = 1 ]; then
  set -- "$@" "--minShapes=$INPUT:${MIN_BATCH}x$SHAPE" "--optShapes=$INPUT:${OPT_BATCH}x$SHAPE" \
    "--maxShapes=$INPUT:${MAX_BATCH}x$SHAPE"
fi
[ -z "$DLA" ] || set -- "$@" "--useDLACore=$DLA" --allowGPUFallback
# Names that changed or came with some version.
if has --memPoolSize; then set -- "$@" "--memPoolSize=workspace:$WORKSPACE_MIB"
elif has --workspace; then set -- "$@" "--workspace=$WORKSPACE_MIB"; fi
if has --skipInference; then set -- "$@" --skipInference
elif has --buildOnly; then set -- "$@" --buildOnly; fi
! has --timingCacheFile || set -- "$@" "--timingCacheFile=$work/timing-$kind$version.cache"
! has --profilingVerbosity || set -- "$@" --profilingVerbosity=detailed
! has --exportLayerInfo || set -- "$@" "--exportLayerInfo=$work/$stem.layers.json"

show() { # COMMAND...: as a shell takes it
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=,+@-]*) printf "'%s' " "$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf '%s ' "$word" ;;
    esac
  done
  printf '\n'
}
if [ "$print_only" = 1 ]; then
  show "$trtexec" "$@"
  exit 0
fi

# -- build in a folder of its own, then rename -----------------------------------------------------------------------
if ! mkdir -p "$engines" || ! mkdir "$work"; then refuse "cannot write to $engines"; fi
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
[ ! -f "$engines/timing-$kind$version.cache" ] || cp "$engines/timing-$kind$version.cache" "$work/"

printf 'build.sh: %s with %s (%s), board %s\n' "$model" "$trtexec" "$version" "$BOARD"
{ "$trtexec" "$@" 2>&1 && : >"$work/done"; } | tee "$work/log"
if [ ! -f "$work/done" ] || [ ! -s "$work/$stem.engine" ]; then
  printf 'build.sh: trtexec failed; the lines with [E] above say why\n' >&2
  exit 1
fi

logged() { sed -n "s/.*$1: *//p" "$work/log" | sed -n 1p | tr -cd 'A-Za-z0-9 ._()/+-'; } # LABEL: its value in the log
sha256=$(sha256sum <"$here/$model")
gpu=$(logged 'Selected Device') capability=$(logged 'Compute Capability')
# TensorRT-RTX builds for all of its architectures, without looking at a GPU.
if [ "$rtx" = true ]; then gpu='' capability=''; fi
if [ -n "$gpu" ]; then gpu="\"$gpu\""; else gpu=null; fi
if [ -n "$capability" ]; then capability="\"$capability\""; else capability=null; fi
cat >"$work/$stem.json" <<EOF
{
 "builder": "trtexec",
 "compute_capability": $capability,
 "file": "$model",
 "gpu": $gpu,
 "model_sha256": "${sha256%% *}",
 "precision": "$PRECISION",
 "rtx": $rtx,
 "tensorrt": "$version"
}
EOF
rm -f "$work/log" "$work/done" "$engines/$stem.layers.json"
for file in "$work"/*; do mv -f "$file" "$engines/"; done
printf 'build.sh: %s\n' "$engines/$stem.engine"
