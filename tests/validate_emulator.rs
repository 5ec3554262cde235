//! Every op's every case, through its kernels on the emulator.

use attn_engine::case::Case;
use attn_engine::gpu::Gpu;
use attn_engine::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Order};
use attn_engine::ops::OPS;
use attn_engine::validate::{Row, Schedule, validate};
use attn_engine::{Device, Precision, Result};
use std::sync::Arc;
use std::time::Instant;

const SCHEDULES: [(Order, CopyPolicy); 6] = [
    (Order::Forward, CopyPolicy::Late),
    (Order::Reverse, CopyPolicy::Early),
    (Order::Random(1), CopyPolicy::Late),
    (Order::Forward, CopyPolicy::Early),
    (Order::Reverse, CopyPolicy::Late),
    (Order::Random(2), CopyPolicy::Random(2)),
];

#[test]
fn emulator_agrees_with_the_definition() -> Result<()> {
    check(Precision::F32, &|_| true)
}

/// The same text as in bf16 with other conversions: what that has been through in every order needs but one here, and
/// large cases none.
#[test]
fn emulator_agrees_in_f16() -> Result<()> {
    check(Precision::F16, &|case| !case.large)
}

#[test]
fn emulator_agrees_in_bf16() -> Result<()> {
    check(Precision::Bf16, &|_| true)
}

/// Attention alone has products that differ from f32's.
#[test]
fn emulator_agrees_in_tf32() -> Result<()> {
    check(Precision::Tf32, &|_| true)
}

fn check(precision: Precision, included: &dyn Fn(&Case) -> bool) -> Result<()> {
    let emulator = Arc::new(Emulator::new(EmulatorOptions::default())?);
    let device: Arc<dyn Device> = Arc::new(Gpu::storing(precision, "emulator", emulator.clone()));
    let schedules = |case: &Case| -> Vec<Schedule> {
        if !included(case) {
            return Vec::new();
        }
        // One of them by the case's name, or all.
        let hash = case.name.bytes().fold(0usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let every = case.every_order && precision != Precision::F16;
        let chosen = if every { 0..SCHEDULES.len() } else { hash % 6..hash % 6 + 1 };
        let schedule = |i: usize| -> Schedule {
            let (emulator, (order, copies)) = (emulator.clone(), SCHEDULES[i]);
            (format!("{order:?}, copies {copies:?}"), Box::new(move || emulator.set_schedule(order, copies)))
        };
        chosen.map(schedule).collect()
    };
    let (mut failed, mut compared): (Vec<Row>, usize) = (Vec::new(), 0);
    for entry in OPS {
        let (start, mut rows) = (Instant::now(), 0);
        validate(&[entry], &device, &schedules, &mut |new| {
            rows += new.len();
            failed.extend(new.iter().filter(|row| !row.passed).cloned());
        })?;
        compared += rows;
        println!("{} {precision}: {rows} comparisons in {:.1} s", entry.name, start.elapsed().as_secs_f64());
    }
    assert!(compared > 0, "nothing was compared in {precision}");
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    Ok(())
}
