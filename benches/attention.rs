//! The attention variants over lengths, forward and backward: `cargo bench --bench attention [-- FILTER]`.
//!
//! Ids are `VARIANT/DIRECTION/T`, with the registry's names. `attn bench` measures the same with memory and errors.

use attn_engine::cpu::Cpu;
use attn_engine::ops::{Entry, OPS};
use attn_engine::philox::Philox;
use attn_engine::{Device, Graph, Plan, PlanOptions};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use std::time::Duration;

const LENGTHS: [usize; 3] = [256, 1024, 4096];
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;

/// A variant on random q, k and v (1, 8, T, 64), with a gradient flowing in, run once.
fn plan(entry: &Entry, length: usize, device: &Arc<dyn Device>) -> Plan {
    let mut graph = Graph::new();
    let shape = [1, HEADS, length, HEAD_DIM];
    let inputs = ["q", "k", "v"].map(|name| graph.variable(name, &shape));
    let [q, k, v] = inputs;
    let record = entry.attention.expect("only attention variants are benched");
    let out = record(&mut graph, q, k, v, false).expect("the variant takes these shapes");
    let options = PlanOptions { roots: vec![out], ..Default::default() };
    let plan = Plan::new(graph, device.clone(), &options).expect("memory for the plan");
    let normal = |stream| {
        let generator = Philox::new(0, stream, 0);
        (0..shape.iter().product::<usize>() as u64).map(|i| generator.normal(i)).collect::<Vec<f64>>()
    };
    for (stream, t) in inputs.into_iter().enumerate() {
        plan.write(t, &normal(stream as u32)).expect("as many values as the tensor has");
    }
    plan.seed(out, &normal(3)).expect("as many values as the tensor has");
    plan.forward().expect("it runs");
    plan
}

fn attention(c: &mut Criterion) {
    let device: Arc<dyn Device> = Arc::new(Cpu::<f32>::new(0));
    for entry in OPS.iter().filter(|e| e.attention.is_some()) {
        let mut group = c.benchmark_group(entry.name);
        // Ten samples of the slowest take seconds, so the whole ends in a few minutes.
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
        for length in LENGTHS {
            let plan = plan(entry, length, &device);
            group.throughput(Throughput::Elements(length as u64));
            group.bench_function(BenchmarkId::new("forward", length), |b| {
                b.iter(|| plan.forward().expect("it runs"));
            });
            // Backward may reuse memory that forward's values were in, so the two are timed together.
            group.bench_function(BenchmarkId::new("forward+backward", length), |b| {
                b.iter(|| plan.forward().and_then(|()| plan.backward()).expect("it runs"));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
