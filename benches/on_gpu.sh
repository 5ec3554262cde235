#!/usr/bin/env bash
# Everything that wants a GPU, in one call, on a machine that needs nothing but the driver, NVRTC (or prebuilt cubins)
# and, for the comparison, PyTorch: tests of the driver, validation, benches beside PyTorch, training.
#
#     benches/on_gpu.sh OUT [TEXT]
#
# Before, where Rust is: cargo build --release && cargo test --release --no-run --features gpu-tests --test cuda_driver
#                        target/release/attn kernels build --arch 90a --install --out kernels-built   (where no NVRTC is)
# ATTN (the binary), CUDA_TESTS (the test binary), ATTN_KERNELS (prebuilt cubins) and PYTHON (one with PyTorch, for the
# comparison; else python3) may be given in the environment.
set -u
out=${1:?usage: benches/on_gpu.sh OUT [TEXT]}
text=${2:-}
attn=${ATTN:-target/release/attn}
tests=${CUDA_TESTS:-$(ls -t target/release/deps/cuda_driver-* 2>/dev/null | grep -v '\.d$' | head -1)}
mkdir -p "$out"
failed=0

stage() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$out/$name.txt" 2>&1; then echo "ok     $name ($((SECONDS - start)) s)"; else
        echo "FAILED $name ($((SECONDS - start)) s), the last lines:"
        tail -n 15 "$out/$name.txt"
        failed=1
    fi
}

stage devices "$attn" devices
stage driver env ATTN_REQUIRE_GPU=1 "$tests" --test-threads 1
stage validate "$attn" validate --device cuda --dtype f32,tf32,f16,bf16 --json "$out/validate.json"
stage validate-own-matmul env ATTN_MATMUL=own "$attn" validate --device cuda --ops 'linear' --dtype f32,f16,bf16
for direction in forward both; do
    stage bench-$direction "$attn" bench --device cuda --batch 4 --heads 16 --head-dim 64 \
        --lengths 512,1024,2048,4096,8192,16384 --direction $direction --out "$out/bench-$direction"
    stage bench-$direction-causal "$attn" bench --device cuda --batch 4 --heads 16 --head-dim 64 --causal \
        --lengths 512,1024,2048,4096,8192,16384 --direction $direction --json "$out/bench-$direction-causal.json"
done
python=${PYTHON:-python3}
if "$python" -c 'import torch' 2>/dev/null; then
    # PyTorch's flash and cuDNN backends take 16 bits only, and say so in f32.
    for size in 64 128 256 16; do
        for dtype in f32 bf16; do
            for direction in forward backward; do
                stage peer-$size-$dtype-$direction "$attn" bench --device cuda --batch 4 --heads 16 --head-dim $size \
                    --variants softmax-attention --lengths 512,1024,2048,4096,8192,16384 --direction $direction \
                    --dtype $dtype --peer torch --python "$python" --json "$out/peer-$size-$dtype-$direction.json"
                stage peer-$size-$dtype-$direction-causal "$attn" bench --device cuda --batch 4 --heads 16 \
                    --head-dim $size --causal --variants softmax-attention --lengths 512,1024,2048,4096,8192,16384 \
                    --direction $direction --dtype $dtype --peer torch --python "$python" \
                    --json "$out/peer-$size-$dtype-$direction-causal.json"
            done
        done
    done
else
    echo "no PyTorch in $python: no comparison (set PYTHON)"
fi
for dtype in f32 bf16; do
    stage train-$dtype "$attn" train lm ${text:+--text "$text"} --preset gpt-nano --block-size 128 --batch-size 16 \
        --steps 2000 --lr 3e-3 --dropout 0 --seed 1 --dtype $dtype --device cuda --overwrite --out "$out/gpt-nano-$dtype"
done
if command -v compute-sanitizer >/dev/null; then
    stage memcheck compute-sanitizer --error-exitcode 1 "$attn" validate --device cuda --ops '*attention'
    stage racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$attn" validate --device cuda --ops 'linear*'
fi
exit $failed
