//! Every op's backward against central differences, and the CPU's results whatever the number of threads.

mod common;

use attn_engine::cpu::Cpu;
use attn_engine::ops::OPS;
use attn_engine::validate::run_case;
use std::sync::Arc;

#[test]
fn backward_agrees_with_central_differences() {
    let mut failures = Vec::new();
    for entry in OPS {
        let mut checked = 0;
        let cases = (entry.cases)();
        for case in &cases {
            let result = common::finite_differences::check(case);
            let Some((at, error)) = result.unwrap_or_else(|e| panic!("{} `{}`: {e}", entry.name, case.name)) else {
                continue;
            };
            checked += 1;
            let bound = if case.kink { common::finite_differences::STEP } else { 1e-7 };
            if error.is_nan() || error >= bound {
                failures.push(format!("{} `{}`: {at} differs by {error:.1e}", entry.name, case.name));
            }
        }
        assert!(checked > 0 || cases.is_empty(), "no case of {} is small enough for differences", entry.name);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for entry in OPS {
        for case in (entry.cases)() {
            let of = |threads| run_case(&case, Arc::new(Cpu::<f32>::new(threads))).unwrap();
            let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect::<Vec<_>>();
            for ((name, one), (_, three)) in of(1).into_iter().zip(of(3)) {
                assert_eq!(bits(one), bits(three), "{} `{}` {name}", entry.name, case.name);
            }
        }
    }
}
