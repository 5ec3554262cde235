//! Fifty steps from the same weights on the same batches lose what minGPT loses in PyTorch: each optimiser, two kinds of
//! positions, on the CPU and through the kernels. `benches/peers/train_torch.py golden` made what is expected, in f64.

#[path = "common/place.rs"]
mod place;

use place::Place;
use serde_json::Value;
use std::path::Path;

/// f32 itself leaves f64 by some 1e-7 over fifty such steps.
const BOUND: f64 = 1e-5;

fn check(device: &str, runs: &[&str]) {
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/training");
    let expected: Value = serde_json::from_slice(&std::fs::read(golden.join("losses.json")).unwrap()).unwrap();
    for run in runs {
        let (positions, optimizer) = run.split_once(' ').unwrap();
        let lr = &expected[run]["lr"];
        let text = golden.join("text.txt");
        let init = golden.join(positions);
        let momentum = if optimizer == "sgd" { "--momentum 0.9" } else { "" };
        place
            .attn_on(
                device,
                &format!(
                    "train lm --text {} --init {} --positions {positions} --optimizer {optimizer} {momentum} --lr {lr} \
                 --layers 2 --heads 2 --width 16 --block-size 12 --batch-size 4 --data-order sequential --dropout 0 \
                 --steps 50 --save-every 0 --out out --overwrite",
                    text.display(),
                    init.display()
                ),
            )
            .unwrap();
        let found = place.losses("out").into_iter().map(f64::from_bits);
        let expected: Vec<f64> = serde_json::from_value(expected[run]["losses"].clone()).unwrap();
        let differences: Vec<f64> = found.zip(&expected).map(|(ours, theirs)| (ours / theirs - 1.0).abs()).collect();
        assert_eq!(differences.len(), 50, "{run}");
        assert!(expected[0] - expected[49] > 0.1, "{run}: has learned nothing that could differ");
        let worst = differences.iter().fold(0.0f64, |a, b| a.max(*b));
        println!("{device}, {run}: {worst:.1e}");
        assert!(worst < BOUND, "{device}, {run}: {worst:e}");
    }
}

#[test]
fn on_the_cpu() {
    let all = ["adamw", "adam", "sgd", "adagrad"].map(|o| [format!("learned {o}"), format!("sinusoidal {o}")]);
    check("cpu", &all.as_flattened().iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn through_the_kernels() {
    check("emulator", &["learned adamw", "sinusoidal sgd", "learned adagrad", "learned adam"]);
}
