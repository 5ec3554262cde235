//! What the fused head is for: memory that does not grow with rows × vocabulary; and that it hides no NaN.

use attn_engine::cpu::Cpu;
use attn_engine::device::Device;
use attn_engine::gpu::Gpu;
use attn_engine::gpu::emulator::{Emulator, EmulatorOptions};
use attn_engine::ops::cross_entropy::CrossEntropy;
use attn_engine::ops::linear::{Linear, WeightLayout};
use attn_engine::ops::linear_cross_entropy::LinearCrossEntropy;
use attn_engine::{Graph, Plan, PlanOptions, Tensor};
use std::sync::Arc;

const IGNORE: i32 = -1;

/// A head of `classes` on `rows` of `columns`: its plan, hidden, targets, loss and token losses.
fn head(fused: bool, device: Arc<dyn Device>, [rows, classes, columns]: [usize; 3]) -> (Plan, [Tensor; 4]) {
    let mut g = Graph::new();
    let hidden = g.variable("hidden", &[rows, columns]);
    let weight = g.parameter("weight", &[classes, columns], true);
    let targets = g.indices("targets", &[rows], IGNORE as i64..classes as i64);
    let losses = if fused {
        g.record(LinearCrossEntropy { ignore: IGNORE }, &[hidden, weight, targets]).unwrap()
    } else {
        let head = Linear { weight: WeightLayout::OutIn, bias: false, activation: None };
        let logits = g.one(head, &[hidden, weight]).unwrap();
        g.record(CrossEntropy { ignore: IGNORE }, &[logits, targets]).unwrap()
    };
    let options = PlanOptions { roots: vec![losses[0]], keep: vec![losses[1]], ..Default::default() };
    (Plan::new(g, device, &options).unwrap(), [hidden, targets, losses[0], losses[1]])
}

#[test]
fn memory_does_not_grow_with_rows_times_vocabulary() {
    let (classes, columns) = (50_257, 48);
    let device: Arc<dyn Device> = Arc::new(Cpu::<f32>::new(1));
    let bytes = |fused, rows| head(fused, device.clone(), [rows, classes, columns]).0.peak_bytes();
    let logits = |rows: usize| 4 * rows * classes;
    println!("rows   fused   unfused, in MB");
    for rows in [512, 1024, 2048] {
        println!("{rows:5} {:6.1} {:8.1}", bytes(true, rows) as f64 / 1e6, bytes(false, rows) as f64 / 1e6);
    }
    // The unfused form holds logits and their gradient. The fused one grows by hidden states, their gradients and a few
    // numbers a row; scratch of the splits is bounded.
    assert!(bytes(false, 1024) - bytes(false, 512) >= 2 * logits(512));
    let grown = bytes(true, 4096) - bytes(true, 2048);
    assert!(grown < 2048 * 4 * (4 * columns + 32), "{grown} bytes more for 2048 rows more");
    assert!(bytes(true, 2048) < logits(2048) / 5);
}

/// Logits that are NaN reach the losses of the rows that count, and no other row's.
#[test]
fn nan_is_not_hidden() {
    let emulator = Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap();
    let emulator: Arc<dyn Device> = Arc::new(Gpu::new("emulator", Arc::new(emulator)));
    for device in [Arc::new(Cpu::<f32>::new(1)) as Arc<dyn Device>, emulator] {
        let (plan, [hidden, targets, loss, token_losses]) = head(true, device, [3, 70, 2]);
        let weight = plan.graph().parameters()[0];
        plan.write(weight, &[0.5; 140]).unwrap();
        plan.write(hidden, &[1.0, 2.0, f64::NAN, 0.0, 3.0, 4.0]).unwrap();
        for (middle, hidden_nan) in [(5, false), (IGNORE, true)] {
            plan.write_indices(targets, &[0, middle, 69]).unwrap();
            plan.forward().unwrap();
            plan.backward().unwrap();
            let each: Vec<bool> = plan.read(token_losses).unwrap().iter().map(|x| x.is_nan()).collect();
            assert_eq!(each, [false, !hidden_nan, false]);
            assert_eq!(plan.read(loss).unwrap()[0].is_nan(), !hidden_nan);
            let d: Vec<bool> = plan.read_gradient(hidden).unwrap().iter().map(|x| x.is_nan()).collect();
            assert_eq!(d, [false, false, !hidden_nan, !hidden_nan, false, false]);
        }
    }
}
