//! The recurrence as a counter, and how its work is divided.

use super::{Cell, Recurrence};
use crate::cpu::Cpu;
use crate::device::Device;
use crate::graph::Graph;
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// y = σ(1000·h_T) of hₜ = xₜ − hₜ₋₁, h₀ = 0: the identity with W_hh = −1.
fn even_against_odd(x: &[f64], device: Arc<dyn Device>) -> f64 {
    let mut g = Graph::new();
    let gates = g.input("x", &[1, x.len(), 1]);
    let weight = g.parameter("weight_hh", &[1, 1], false);
    let op =
        Recurrence { cell: Cell::Identity, directions: 1, bias: false, initial: false, lengths: false, kernel: None };
    let h_n = g.record(op, &[gates, weight]).unwrap()[1];
    let plan = Plan::new(g, device, &PlanOptions { keep: vec![h_n], ..Default::default() }).unwrap();
    plan.write(gates, x).unwrap();
    plan.write(weight, &[-1.0]).unwrap();
    plan.forward().unwrap();
    let h = plan.read(h_n).unwrap()[0];
    // e^(−1000·h) overflows to infinity and its inverse is 0, as it should be.
    1.0 / (1.0 + (-1000.0 * h).exp())
}

#[test]
fn a_recurrence_tells_whether_even_places_or_odd_ones_sum_to_more() {
    // h_T = x_T − x_{T−1} + x_{T−2} − …: places of T's parity, counted from 1, stand for the sum.
    let devices: [fn() -> Arc<dyn Device>; 2] =
        [|| Arc::new(Cpu::<f64>::definition()), || Arc::new(Cpu::<f32>::new(1))];
    for device in devices {
        let run = |x: &[f64]| even_against_odd(x, device());
        // Of even length: 1 where the even-placed sum is larger.
        assert_eq!(run(&[1.0, 2.0, 3.0, 5.0]), 1.0);
        assert_eq!(run(&[5.0, 2.0, 3.0, 1.0]), 0.0);
        // Of odd length the last place is odd: 1 where the odd-placed sum is larger.
        assert_eq!(run(&[1.0, 9.0, 3.0]), 0.0);
        assert_eq!(run(&[4.0, 5.0, 3.0]), 1.0);
        for equal in [&[2.0, 2.0][..], &[1.0, 4.0, 3.0], &[0.0]] {
            assert_eq!(run(equal), 0.5);
        }
        assert_eq!(run(&[1e6, -1e6, 1e6]), 1.0);
    }
}
