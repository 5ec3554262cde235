//! Token by token a model gives the logits that it gives of the whole text, whatever its options.

use attn_engine::cpu::Cpu;
use attn_engine::device::Device;
use attn_engine::gpu::Gpu;
use attn_engine::gpu::emulator::{Emulator, EmulatorOptions};
use attn_engine::model::{Gpt, GptConfig, HeadMerge, HeadMerging, Positions, Sampler, TokenByToken};
use std::sync::Arc;

const BLOCK: usize = 9;
const VOCABULARY: usize = 11;
const SOFTMAX: &str = "softmax-attention";
const LINEAR: &str = "linear-attention";
const MEAN: &str = "mean-similarity-attention";

fn gpt(positions: Positions, attention: &[&str], merge: HeadMerge) -> Gpt {
    let attention = attention.iter().map(|a| a.to_string()).collect();
    let head_merging = HeadMerging { merge, ..Default::default() };
    let (layers, heads, width) = (2, 3, 12);
    let (block, vocabulary) = (BLOCK, VOCABULARY);
    let config =
        GptConfig { layers, heads, width, block, vocabulary, attention, positions, head_merging, ..Default::default() };
    Gpt::new(config).unwrap()
}

/// Parameters far enough from their initial values that attention and positions matter.
fn initialize(gpt: &Gpt, plan: &attn_engine::Plan) {
    for t in plan.graph().parameters() {
        let values: Vec<f64> = gpt.initial(plan.graph(), t, 1).iter().map(|x| x * 10.0).collect();
        plan.write(t, &values).unwrap();
    }
}

fn largest_difference(gpt: &Gpt, device: &Arc<dyn Device>) -> f64 {
    let windows = Sampler::new(gpt, device.clone()).unwrap();
    let mut steps = TokenByToken::new(gpt, device.clone()).unwrap();
    initialize(gpt, windows.plan());
    initialize(gpt, steps.plan());
    let mut worst = 0.0f64;
    // The second text shares a beginning with the first; the third comes at once, as a prompt does.
    for (text, from) in [([3, 1, 4, 1, 5, 9, 2, 6, 5], 1), ([3, 1, 4, 8, 0, 0, 7, 10, 1], 4), ([2; BLOCK], BLOCK)] {
        for count in from..=BLOCK {
            let (all, step) = (windows.logits(&text[..count]).unwrap(), steps.logits(&text[..count]).unwrap());
            assert_eq!(all.len(), VOCABULARY);
            let scale = all.iter().fold(0.1f64, |m, x| m.max(x.abs()));
            worst = all.iter().zip(step).map(|(a, b)| (a - b).abs() / scale).fold(worst, f64::max);
        }
    }
    worst
}

#[test]
fn token_by_token_gives_the_logits_of_the_whole() {
    let device: Arc<dyn Device> = Arc::new(Cpu::<f32>::new(1));
    for positions in [
        Positions::Learned,
        Positions::Sinusoidal,
        Positions::SinusoidalPaired,
        Positions::Rotary,
        Positions::Alibi,
        Positions::None,
    ] {
        let variants: &[&[&str]] = match positions {
            Positions::Alibi => &[&[SOFTMAX]],
            _ => &[&[SOFTMAX], &[LINEAR], &[MEAN], &[SOFTMAX, LINEAR], &[LINEAR, MEAN]],
        };
        for attention in variants {
            for merge in [HeadMerge::Concat, HeadMerge::Shift, HeadMerge::Shuffle] {
                let worst = largest_difference(&gpt(positions, attention, merge), &device);
                assert!(worst < 1e-5, "{positions:?} {attention:?} {merge:?}: {worst:.1e}");
            }
        }
    }
}

#[test]
fn the_emulator_agrees() {
    let emulator = Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap();
    let emulator: Arc<dyn Device> = Arc::new(Gpu::new("emulator", Arc::new(emulator)));
    let worst = largest_difference(&gpt(Positions::Rotary, &[SOFTMAX, LINEAR], HeadMerge::Concat), &emulator);
    assert!(worst < 1e-5, "{worst:.1e}");
}

#[test]
fn what_it_cannot_do_is_said() {
    let device: Arc<dyn Device> = Arc::new(Cpu::<f32>::new(1));
    let reweighted = gpt(Positions::Learned, &[SOFTMAX], HeadMerge::Reweight);
    let error = TokenByToken::new(&reweighted, device.clone()).err().unwrap().to_string();
    assert!(error.contains("--head-merge reweight"), "{error}");
    let plain = gpt(Positions::Learned, &[SOFTMAX], HeadMerge::Concat);
    let mut steps = TokenByToken::new(&plain, device).unwrap();
    initialize(&plain, steps.plan());
    let error = steps.logits(&[1; BLOCK + 1]).unwrap_err().to_string();
    assert!(error.contains("more than the block size 9"), "{error}");
    assert!(steps.logits(&[]).unwrap_err().to_string().contains("at least one"));
    assert!(steps.logits(&[1, VOCABULARY as i32]).unwrap_err().to_string().contains("out of range"));
    // A refused token leaves the others usable.
    assert_eq!(steps.logits(&[1]).unwrap().len(), VOCABULARY);
}
