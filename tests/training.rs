//! The training loop from outside: schedules, accumulation, early stopping, the best checkpoint, and what a crash leaves.

#[path = "common/place.rs"]
mod place;

use attn_engine::train::checkpoint::Checkpoint;
use place::{Place, same_files};
use serde_json::Value;
use std::fs;

const SMALL: &str = "--batch-size 4 --save-every 0";
const WEIGHTS: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];

fn rates(place: &Place, run: &str) -> Vec<f64> {
    place.rows(run).iter().filter_map(|row| row["lr"].as_f64()).collect()
}

/// For each optimiser with a schedule: a run in two parts is the run in one, to the bit.
#[test]
fn optimisers_and_schedules_resume_bit_for_bit() {
    let place = Place::new();
    for (name, flags, buffers, expected) in [
        (
            "adamw",
            "--schedule cosine --schedule-steps 6 --lr 8e-4 --warmup 2",
            2,
            [4e-4, 8e-4, 8e-4, 6.828_427_124_746_19e-4],
        ),
        ("adam", "--schedule linear --schedule-steps 6 --lr 6e-4 --weight-decay-l2 0.01", 2, [6e-4, 5e-4, 4e-4, 3e-4]),
        ("sgd", "--schedule step --step-size 2 --gamma 0.5 --lr 0.8 --momentum 0.9", 1, [0.8, 0.8, 0.4, 0.4]),
        // Every evaluation after the first is "no better", as the rate of 1e-12 changes nothing that can be seen.
        (
            "adagrad",
            "--schedule plateau --patience 0 --eval-every 1 --lr 1e-12 --accumulate 2",
            1,
            [1e-12, 1e-12, 1e-13, 1e-14],
        ),
    ] {
        let base = format!("train lm {SMALL} --optimizer {name} {flags}");
        place.attn(&format!("{base} --steps 6 --out {name}"));
        place.attn(&format!("{base} --steps 4 --out {name}-parts"));
        place.attn(&format!("train lm --resume {name}-parts --steps 6"));
        let parts = format!("{name}-parts");
        same_files(&place.path(name), &place.path(&parts), &WEIGHTS);
        assert_eq!(place.losses(name), place.losses(&parts));
        assert_eq!(rates(&place, name), rates(&place, &parts));
        for (rate, expected) in rates(&place, name).iter().zip(expected) {
            assert!((rate / expected - 1.0).abs() < 1e-12, "{name}: {rate} {expected}");
        }
        let bytes = fs::read(place.path(name).join("optimizer.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), buffers, "{name}");
    }
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let place = Place::new();
    let base = "train lm --data-order sequential --dropout 0 --save-every 0 --steps 3 --lr 1e-2";
    place.attn(&format!("{base} --batch-size 6 --out whole"));
    place.attn(&format!("{base} --batch-size 2 --accumulate 3 --out parts"));
    let (whole, parts) = (place.losses("whole"), place.losses("parts"));
    for (a, b) in whole.iter().zip(&parts) {
        let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
        assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
    }
    assert_eq!((whole.len(), parts.len()), (3, 3));
    place.refuses("train lm --resume parts --steps 4 --accumulate 2", &["--accumulate 2: the run to resume has 3"]);
}

/// On a device that captures, replayed steps and launched ones leave the same bits.
#[test]
fn eager_steps_are_the_same() {
    let place = Place::new();
    let flags = "--batch-size 2 --accumulate 2 --save-every 0 --steps 4 --schedule cosine --preset gpt-nano";
    place.attn_on("emulator", &format!("train lm {flags} --out captured")).unwrap();
    place.attn_on("emulator", &format!("train lm {flags} --eager --out eager")).unwrap();
    same_files(&place.path("captured"), &place.path("eager"), &WEIGHTS);
    assert_eq!(place.losses("captured"), place.losses("eager"));
}

/// Text that is learned and forgotten: validation on another tenth gets worse, so that the run stops early and keeps the
/// best.
#[test]
fn stops_early_and_keeps_the_best() {
    let place = Place::new();
    let text: String = (0..900).map(|i| ['a', 'b'][i % 2]).chain((0..100).map(|_| 'a')).collect();
    let text = place.text("t.txt", text);
    let flags = "--block-size 8 --lr 1e-2 --dropout 0 --eval-every 2 --early-stop 3";
    let said = place.attn(&format!("train lm {SMALL} --text {text} {flags} --steps 1000 --out run"));
    let rows = place.rows("run");
    let found: Vec<(u64, f64)> =
        rows.iter().filter_map(|r| Some((r["step"].as_u64()?, r["val_loss"].as_f64()?))).collect();
    let best = *found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = found.last().unwrap().0;
    assert_eq!(last, best.0 + 6, "three evaluations after the best: {found:?}");
    assert!(said.contains(&format!("best val_loss {:.4} after {} steps; in run", best.1, best.0)), "{said}");
    let state: Value = serde_json::from_slice(&fs::read(place.path("run/best/training.json")).unwrap()).unwrap();
    assert_eq!((&state["step"], &state["watch"]["best"]), (&best.0.into(), &best.1.into()));

    // The best checkpoint evaluates as it did.
    let split = place.text("v.txt", "a".repeat(97));
    place.attn(&format!("eval lm --checkpoint run/best --text {split} --json v.json"));
    let again: Value = serde_json::from_slice(&fs::read(place.path("v.json")).unwrap()).unwrap();
    assert!((again["loss"].as_f64().unwrap() / best.1 - 1.0).abs() < 1e-6, "{again} {best:?}");

    place.refuses("train lm --resume run", &["--early-stop 3: the run has stopped early"]);
    place.attn("train lm --resume run --early-stop 4 --out on");
    assert_eq!(place.rows("on").last().unwrap()["step"], last + 2);
    same_files(&place.path("run/best"), &place.path("on/best"), &WEIGHTS);
    // Starting over leaves nothing of the earlier run.
    place.attn(&format!("train lm {SMALL} --steps 1 --overwrite --out run"));
    assert!(!place.path("run/best").exists());
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let place = Place::new();
    for (flags, words) in [
        ("--optimizer rmsprop", &["rmsprop", "adamw, adam, sgd, adagrad"][..]),
        ("--momentum 0.9", &["--momentum 0.9: means nothing to --optimizer adamw", "--optimizer sgd"]),
        ("--optimizer sgd --weight-decay 0.1", &["--weight-decay 0.1: means nothing to --optimizer sgd"]),
        ("--weight-decay-l2 0.1", &["--weight-decay-l2 0.1: means nothing", "adam or sgd or adagrad"]),
        ("--optimizer sgd --momentum 1", &["--momentum 1: is out of range"]),
        ("--schedule step", &["--schedule step: does not say when", "--step-size"]),
        ("--schedule cosine --gamma 0.5", &["--gamma 0.5: means nothing to --schedule cosine", "step or plateau"]),
        ("--min-lr 1e-5", &["--min-lr 0.00001: means nothing to --schedule constant"]),
        ("--schedule linear --min-lr 1", &["--min-lr 1: is out of range", "at most --lr"]),
        ("--schedule linear --steps 5 --warmup 5", &["--warmup 5: leaves no steps to fall in, of 5"]),
        ("--schedule plateau", &["--schedule plateau: needs evaluations", "--eval-every"]),
        ("--early-stop 2", &["--early-stop 2: needs evaluations", "--eval-every"]),
        ("--accumulate 0", &["--accumulate"]),
    ] {
        place.refuses(&format!("train lm --out r {flags}"), words);
    }
    assert!(!place.path("r").exists());
    place.attn(&format!("train lm {SMALL} --steps 2 --grad-clip inf --optimizer sgd --out s"));
    place.attn("train lm --resume s --steps 3");
    place.refuses("train lm --resume s --steps 4 --optimizer adam", &["--optimizer \"adam\"", "has \"sgd\""]);
    place.refuses("train lm --resume s --steps 4 --early-stop 1", &["--early-stop 1: needs evaluations"]);
}

/// A process that is killed while it writes a checkpoint leaves the one before it, or this one: nothing in between.
#[cfg(unix)]
#[test]
fn a_kill_in_the_middle_of_a_checkpoint_loses_nothing_older() {
    use std::process::{Command, Stdio};
    let place = Place::new();
    let run = place.path("run");
    let signal = |name: &str, id: u32| Command::new("kill").args([name, &id.to_string()]).status().unwrap().success();
    let unfinished = || {
        let entries = fs::read_dir(&run).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).any(|n| n.starts_with(".part-") || n == ".ready")
    };
    place.attn(&format!("train lm {SMALL} --steps 1 --out run"));
    let mut done = 1;
    for round in 1..=3 {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("attn"));
        child.current_dir(place.0.path()).args("train lm --resume run --save-every 1 --steps 1000000".split(' '));
        let mut child = child.args(["--device", "cpu", "--threads", "1"]).stderr(Stdio::null()).spawn().unwrap();
        let mut caught = 0;
        loop {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            // Stopped, it cannot go on while we look again; killed now, it dies in the middle.
            if unfinished() && signal("-STOP", child.id()) {
                caught += unfinished() as usize;
                if caught == round {
                    break;
                }
                signal("-CONT", child.id());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(unfinished(), "killed in the middle of a checkpoint");
        let logged = place.rows("run").iter().filter_map(|r| r["step"].as_u64()).max().unwrap();
        // Written after every step: at most the step that it was about to keep is lost.
        let (state, _) = Checkpoint::open(&run).unwrap().training::<Value>().unwrap();
        assert!(state.step >= done.max(logged - 1), "{state:?} of {logged} steps, after {done}");
        done = logged + 2;
        place.attn(&format!("train lm --resume run --save-every 0 --steps {done}"));
        let losses = place.rows("run").into_iter().filter(|r| r["loss"].is_number());
        assert_eq!(losses.map(|r| r["step"].as_u64().unwrap()).collect::<Vec<u64>>(), (1..=done).collect::<Vec<u64>>());
    }
    // Killed three times, it has done what it would have done in one go.
    place.attn(&format!("train lm {SMALL} --steps {done} --out whole"));
    same_files(&place.path("whole"), &run, &WEIGHTS);
    assert_eq!(place.losses("whole"), place.losses("run"));
}

/// A disk that takes no more (here: a limit on the size of files) is an error, and the checkpoint before stays.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_no_checkpoint() {
    use std::process::Command;
    let place = Place::new();
    place.attn(&format!("train lm {SMALL} --steps 2 --out run"));
    let before = fs::read(place.path("run/model.safetensors")).unwrap();
    let attn = assert_cmd::cargo::cargo_bin("attn");
    // Larger files than 32 KiB are refused with an error (the signal that would kill the process is ignored).
    let line =
        format!("trap '' XFSZ; ulimit -f 32; exec {} train lm --resume run --steps 4 --device cpu", attn.display());
    let output = Command::new("bash").args(["-c", &line]).current_dir(place.0.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("run: cannot be written: File too large") && message.contains("--out"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(before, fs::read(place.path("run/model.safetensors")).unwrap());
    let names = fs::read_dir(place.path("run")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|n| !n.starts_with('.')), "nothing half-written is left");
    place.attn("train lm --resume run --steps 4");
    place.attn(&format!("train lm {SMALL} --steps 4 --out whole"));
    same_files(&place.path("whole"), &place.path("run"), &WEIGHTS);
}
