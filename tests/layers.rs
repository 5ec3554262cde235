//! What a comparison with the oracle cannot show of the layers: NaN.

use attn_engine::cpu::Cpu;
use attn_engine::device::Device;
use attn_engine::gpu::Gpu;
use attn_engine::gpu::emulator::{Emulator, EmulatorOptions};
use attn_engine::ops::cross_entropy::CrossEntropy;
use attn_engine::ops::softmax::Softmax;
use attn_engine::{Graph, Plan, PlanOptions};
use std::sync::Arc;

fn emulator() -> Arc<dyn Device> {
    let emulator = Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap();
    Arc::new(Gpu::new("emulator", Arc::new(emulator)))
}

/// A NaN logit reaches the loss, also as the largest of its row and next to −∞; of an ignored row it does not.
#[test]
fn nan_logits_are_not_hidden() {
    let devices = [Arc::new(Cpu::<f32>::new(1)) as Arc<dyn Device>, emulator()];
    for device in devices {
        for (column, target, hidden) in [(0, 1, false), (2, 2, false), (1, -1, true)] {
            let mut graph = Graph::new();
            let logits = graph.variable("logits", &[2, 3]);
            let targets = graph.indices("targets", &[2], -1..3);
            let loss = graph.one(CrossEntropy { ignore: -1 }, &[logits, targets]).unwrap();
            let softmax = graph.one(Softmax { axis: 1 }, &[logits]).unwrap();
            let options = PlanOptions { roots: vec![loss], keep: vec![softmax], ..Default::default() };
            let plan = Plan::new(graph, device.clone(), &options).unwrap();
            let mut values = [f64::NEG_INFINITY, 1.0, 2.0, 0.0, 0.0, 0.0];
            values[column] = f64::NAN;
            plan.write(logits, &values).unwrap();
            plan.write_indices(targets, &[target, 1]).unwrap();
            plan.forward().unwrap();
            plan.backward().unwrap();
            let name = device.name();
            assert_eq!(plan.read(loss).unwrap()[0].is_nan(), !hidden, "{name} {column}");
            let gradient = plan.read_gradient(logits).unwrap();
            assert!(gradient[..3].iter().all(|d| d.is_nan() != hidden), "{name} {column} {gradient:?}");
            assert!(plan.read(softmax).unwrap()[..3].iter().all(|p| p.is_nan()), "{name} {column}");
        }
    }
}
