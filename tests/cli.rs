//! The command line's contract: exit codes, errors that name the thing, files whole or not at all.

use assert_cmd::Command;
use attn_engine::io::tensors;
use attn_engine::ops::OPS;
use attn_engine::run_spec::Given;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn attn(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("attn").expect("the binary is built");
    command.args(arguments);
    command
}

/// Runs, expects the exit code, and returns stdout and stderr.
fn expect(code: i32, arguments: &[&str]) -> (String, String) {
    let output = attn(arguments).output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}{err}");
    assert!(!err.contains("panicked"), "{arguments:?}\n{err}");
    (out, err)
}

fn refused(arguments: &[&str], names: &[&str]) {
    let (_, err) = expect(2, arguments);
    assert!(err.starts_with("error: "), "{err}");
    for name in names {
        assert!(err.contains(name), "{name} is not in: {err}");
    }
}

/// Name, dtype, shape, bytes.
type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &'static str, shape: &[usize]) -> Stored {
    let n: usize = shape.iter().product();
    (name, Dtype::F32, shape.into(), (0..n).flat_map(|i| ((i * 7 % 11) as f32 / 5.0 - 1.0).to_le_bytes()).collect())
}

fn i64s(name: &'static str, values: &[i64]) -> Stored {
    (name, Dtype::I64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn bytes_of(tensors: &[Stored]) -> Vec<u8> {
    let view = |t| {
        let (name, dtype, shape, bytes): &Stored = t;
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("consistent"))
    };
    let views = tensors.iter().map(view);
    serialize(views, None).expect("serialisable")
}

fn qkv() -> Vec<Stored> {
    vec![f32s("q", &[2, 4, 5, 6]), f32s("k", &[2, 2, 7, 6]), f32s("v", &[2, 2, 7, 3])]
}

/// A folder with `in.safetensors`, and the paths of that and of the output.
struct Bed {
    folder: tempfile::TempDir,
    input: String,
    output: String,
}

impl Bed {
    fn new(content: &[u8]) -> Bed {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_string();
        let (input, output) = (path("in.safetensors"), path("out.safetensors"));
        std::fs::write(&input, content).expect("writable");
        Bed { folder, input, output }
    }

    fn of(tensors: &[Stored]) -> Bed {
        Bed::new(&bytes_of(tensors))
    }

    fn arguments<'a>(&'a self, op: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["run", op, "--input", &self.input, "--output", &self.output];
        // Where the device is not the point, the one that needs no compiler and no GPU.
        if !more.contains(&"--device") {
            all.extend(["--device", "cpu"]);
        }
        all.extend(more);
        all
    }

    fn run(&self, more: &[&str]) -> Vec<(String, Dtype, Vec<usize>)> {
        expect(0, &self.arguments("softmax-attention", more));
        let bytes = std::fs::read(&self.output).expect("the output was written");
        let parsed = SafeTensors::deserialize(&bytes).expect("a valid file");
        let mut list: Vec<_> = parsed.iter().map(|(n, t)| (n.to_string(), t.dtype(), t.shape().to_vec())).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    fn refused(&self, more: &[&str], names: &[&str]) {
        refused(&self.arguments("softmax-attention", more), names);
        assert_eq!(self.files(), ["in.safetensors"], "nothing is left behind");
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("readable");
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let (out, _) = expect(0, &["--help"]);
    let commands = out.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names: Vec<&str> = commands.filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next()).collect();
    for name in ["devices", "bench", "run", "kernels", "completions"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for name in names {
        let (out, _) = expect(0, &[name, "--help"]);
        let nested = out.contains("\nCommands:\n");
        assert!(nested || out.contains("Example"), "attn {name} --help has no example:\n{out}");
    }
}

#[test]
fn mistakes_in_the_command_line_are_named() {
    refused(&["frobnicate"], &["frobnicate"]);
    refused(&["bench", "--lenghts", "4"], &["--lenghts"]);
    refused(&["bench", "--lengths", "0"], &["--lengths"]);
    refused(&["bench", "--device", "tpu"], &["tpu", "emulator"]);
    refused(&["bench", "--variants", "flash"], &["--variants flash", "softmax-attention"]);
    refused(&["bench", "--threads", "0"], &["--threads"]);
    refused(&["bench", "--dtype", "f64", "--device", "emulator"], &["emulator", "--device cpu"]);
    refused(&["run", "softmax-attention"], &["--input"]);
    refused(&["run", "no-such-op"], &["no-such-op"]);
}

#[test]
fn run_lists_every_op() {
    let (out, _) = expect(0, &["run", "--list"]);
    for entry in OPS {
        assert_eq!(entry.run.is_some(), out.contains(&format!("\n{}:", entry.name)) || out.starts_with(entry.name));
        if entry.run.is_some() {
            let (help, _) = expect(0, &["run", entry.name, "--help"]);
            assert!(help.contains("takes") && help.contains("Example"), "{help}");
        }
    }
    assert!(out.contains("key_lengths") && out.contains("(B,H,T,Dk)") && out.contains("--causal"));
}

#[test]
fn outputs_have_the_shapes_and_dtypes_of_the_contract() {
    let bed = Bed::of(&qkv());
    let named = |name: &str, dtype, shape: &[usize]| (name.to_string(), dtype, shape.to_vec());
    let forward = |dtype, lse| vec![named("lse", lse, &[2, 4, 5]), named("out", dtype, &[2, 4, 5, 3])];
    assert_eq!(bed.run(&[]), forward(Dtype::F32, Dtype::F32));
    assert_eq!(bed.run(&["--dtype", "f64"]), forward(Dtype::F64, Dtype::F64));
    assert_eq!(bed.run(&["--dtype", "bf16", "--causal", "--scale", "-0.5"]), forward(Dtype::BF16, Dtype::F32));

    let mut all = qkv();
    all.extend([f32s("dout", &[2, 4, 5, 3]), i64s("key_lengths", &[0, 7])]);
    let expected = vec![
        named("dk", Dtype::F32, &[2, 2, 7, 6]),
        named("dq", Dtype::F32, &[2, 4, 5, 6]),
        named("dv", Dtype::F32, &[2, 2, 7, 3]),
        named("lse", Dtype::F32, &[2, 4, 5]),
        named("out", Dtype::F32, &[2, 4, 5, 3]),
    ];
    let bed = Bed::of(&all);
    assert_eq!(bed.run(&[]), expected);
    assert_eq!(bed.files(), ["in.safetensors", "out.safetensors"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let with = |more: Stored| [qkv(), vec![more]].concat();
    Bed::of(&with(f32s("masque", &[5, 7]))).refused(&[], &["`masque`", "unknown"]);
    Bed::of(&with(f32s("dout", &[2, 4, 3, 5]))).refused(&[], &["`dout`", "[2, 4, 5, 3]"]);
    Bed::of(&with(i64s("dout", &[1]))).refused(&[], &["`dout`", "integers"]);
    Bed::of(&with(i64s("key_lengths", &[7]))).refused(&[], &["key_lengths", "[2]"]);
    Bed::of(&with(i64s("key_lengths", &[3, 8]))).refused(&[], &["key_lengths", "8"]);
    Bed::of(&with(i64s("key_lengths", &[-1, 7]))).refused(&[], &["key_lengths", "-1"]);
    Bed::of(&with(f32s("key_lengths", &[2]))).refused(&[], &["key_lengths", "integers"]);
    Bed::of(&with(("dout", Dtype::I16, vec![1], vec![0, 0]))).refused(&[], &["dout", "I16"]);
    Bed::of(&qkv()[..2]).refused(&[], &["v", "missing"]);
    Bed::of(&[f32s("q", &[2, 4, 5]), qkv().remove(1), qkv().remove(2)]).refused(&[], &["q", "(B,H,T,Dk)"]);
    Bed::of(&[qkv().remove(0), f32s("k", &[2, 3, 7, 6]), qkv().remove(2)]).refused(&[], &["softmax-attention", "k"]);
    let empty = ("q", Dtype::F32, vec![0, 1 << 31, 1 << 31, 1], vec![]);
    Bed::of(&[empty, qkv().remove(1), qkv().remove(2)]).refused(&[], &["q", "empty"]);
}

#[test]
fn features_of_softmax_attention_are_taken() {
    let named = |name: &str, shape: &[usize]| (name.to_string(), Dtype::F32, shape.to_vec());
    let mut all = qkv();
    let mask = ("mask", Dtype::BOOL, vec![2, 1, 1, 7], vec![1; 14]);
    all.extend([f32s("dlse", &[2, 4, 5]), f32s("bias", &[1, 4, 5, 7]), mask, i64s("key_lengths", &[7, 2])]);
    let expected = vec![
        named("dbias", &[1, 4, 5, 7]),
        named("dk", &[2, 2, 7, 6]),
        named("dq", &[2, 4, 5, 6]),
        named("dv", &[2, 2, 7, 3]),
        named("lse", &[2, 4, 5]),
        named("out", &[2, 4, 5, 3]),
        named("weights", &[2, 4, 5, 7]),
    ];
    let flags = "--window -1,2 --softcap 3 --alibi --dropout 0.5 --seed 18446744073709551615 --weights --splits 2";
    let flags: Vec<&str> = flags.split(' ').collect();
    assert_eq!(Bed::of(&all).run(&flags[2..]), expected);
    assert_eq!(Bed::of(&all).run(&[&["--window=-1,2"], &flags[2..]].concat()), expected);

    let one = |more: &[Stored]| {
        let qkv = [f32s("q", &[1, 2, 5, 6]), f32s("k", &[1, 2, 7, 6]), f32s("v", &[1, 2, 7, 3])];
        Bed::of(&[&qkv, more].concat())
    };
    let (of_q, of_k) = (i64s("cu_seqlens_q", &[0, 2, 5]), i64s("cu_seqlens_k", &[0, 7, 7]));
    assert_eq!(one(&[of_q.clone(), of_k.clone()]).run(&["--causal"]).len(), 2);
    // Dropout draws by its seed.
    let out = |seed: &str| {
        let bed = one(&[]);
        bed.run(&["--dropout", "0.5", "--seed", seed]);
        std::fs::read(&bed.output).expect("the output was written")
    };
    assert!(out("3") == out("3") && out("3") != out("4"));

    one(std::slice::from_ref(&of_q)).refused(&[], &["cu_seqlens_k", "both"]);
    one(&[of_q.clone(), i64s("cu_seqlens_k", &[0, 7])]).refused(&[], &["cu_seqlens_k", "int(3)"]);
    one(&[of_q.clone(), i64s("cu_seqlens_k", &[0, 8, 7])]).refused(&[], &["cu_seqlens_k", "falls from 8 to 7"]);
    one(&[of_q.clone(), i64s("cu_seqlens_k", &[0, 3, 6])]).refused(&[], &["cu_seqlens_k", "from 0 to 6"]);
    one(&[i64s("cu_seqlens_q", &[0]), of_k.clone()]).refused(&[], &["cu_seqlens_q", "[1]"]);
    one(&[f32s("cu_seqlens_q", &[3]), of_k.clone()]).refused(&[], &["cu_seqlens_q", "integers"]);
    one(&[of_q.clone(), of_k.clone(), i64s("key_lengths", &[7])]).refused(&[], &["key_lengths", "cu_seqlens_k"]);
    Bed::of(&[qkv(), vec![of_q, of_k]].concat()).refused(&[], &["batch of 1"]);
    one(&[f32s("mask", &[1, 1, 1, 7])]).refused(&[], &["mask", "floating point", "bias"]);
    one(&[("mask", Dtype::BOOL, vec![1, 3, 1, 7], vec![1; 21])]).refused(&[], &["mask", "(1 or 1, 2 or 1, 5 or 1, 7)"]);
    one(&[f32s("bias", &[5, 7])]).refused(&[], &["bias", "(B|1,H|1,T|1,S)"]);
    one(&[f32s("bias", &[1, 2, 5, 1])]).refused(&[], &["bias", "real(1, 2, 5, 1)"]);
    one(&[f32s("alibi_slopes", &[3])]).refused(&[], &["alibi_slopes", "full (2)"]);
    one(&[f32s("dlse", &[1, 2, 7])]).refused(&[], &["dlse", "[1, 2, 5]"]);
    one(&[f32s("dweights", &[1, 2, 5, 7])]).refused(&["--weights"], &["dweights", "unknown"]);
    one(&[]).refused(&["--window", "3"], &["--window 3", "LEFT,RIGHT"]);
    one(&[]).refused(&["--window", "3,-2"], &["--window 3,-2"]);
    one(&[]).refused(&["--window", "3,1", "--causal"], &["--window 3,1", "--causal"]);
    one(&[]).refused(&["--softcap", "0"], &["softcap 0", "positive"]);
    one(&[]).refused(&["--softcap", "inf"], &["softcap inf", "positive"]);
    one(&[]).refused(&["--dropout", "1.5"], &["--dropout 1.5"]);
    one(&[]).refused(&["--seed", "1"], &["--seed", "--dropout"]);
    one(&[]).refused(&["--splits", "0"], &["splits 0"]);
}

#[test]
fn flags_and_devices_that_do_not_fit_are_named() {
    let bed = Bed::of(&qkv());
    bed.refused(&["--num-heads", "3"], &["--num-heads"]);
    bed.refused(&["--scale", "wide"], &["--scale wide"]);
    bed.refused(&["--dtype", "f8"], &["f8"]);
    bed.refused(&["--dtype", "f64", "--device", "emulator"], &["emulator", "f64", "--device cpu"]);
    bed.refused(&["--dtype", "f64", "--device", "cuda:9"], &["cuda:9", "f64"]);
    bed.refused(&["--device", "cuda:99"], &["cuda:99", "--device cpu"]);
    refused(&bed.arguments("linear-attention", &["--scale", "1"]), &["--scale"]);
    let stored = ["--dtype", "bf16", "--device", "emulator"];
    refused(
        &bed.arguments("linear-attention", &stored),
        &["linear-attention: has no kernels in bf16; use --dtype f32"],
    );
    bed.refused(&["--tf32"], &["--tf32: is for a GPU, and this is cpu"]);
    bed.refused(&["--tf32", "--dtype", "f16"], &["--tf32: is for f32 tensors, and these are f16"]);
    refused(
        &["bench", "--dtype", "bf16", "--device", "emulator", "--variants", "linear-attention"],
        &["has no kernels"],
    );
}

/// Stored in 16 bits on the emulator, only rounded to them on the CPU: the same but for the order of sums, which can
/// tip a rounding.
#[test]
fn the_emulator_stores_16_bits() {
    let mut all = qkv();
    all.push(f32s("dout", &[2, 4, 5, 3]));
    let bed = Bed::of(&all);
    for (dtype, stored, unit) in [("bf16", Dtype::BF16, 2f64.powi(-7)), ("f16", Dtype::F16, 2f64.powi(-10))] {
        let given = |device: &str| {
            let written = bed.run(&["--dtype", dtype, "--device", device]);
            for (name, got, _) in &written {
                assert_eq!(*got, if name == "lse" { Dtype::F32 } else { stored }, "{name}");
            }
            tensors::read(Path::new(&bed.output)).unwrap()
        };
        let (emulator, cpu) = (given("emulator"), given("cpu"));
        assert_eq!(emulator.len(), 5);
        for (name, tensor) in &emulator {
            let (Given::Real(_, x), Given::Real(_, y)) = (&tensor.given, &cpu[name].given) else { panic!("{name}") };
            let most = y.iter().fold(0f64, |m, y| m.max(y.abs()));
            // lse stays f32 throughout. Backward reads the output, which is stored in 16 bits.
            let bound = if name == "lse" { 1e-6 } else { 2.0 * unit } * most;
            for (x, y) in x.iter().zip(y) {
                assert!((x - y).abs() <= bound, "{dtype} {name}: {x} {y}");
            }
        }
    }
}

/// A file of this header and these bytes.
fn lying(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

#[test]
fn files_that_lie_are_refused() {
    let entry = |shape: &str, offsets: &str| {
        format!(r#"{{"q":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#).into_bytes()
    };
    let two = r#"{"q":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"k":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let deep = "[".repeat(100_000);
    let whole = bytes_of(&qkv());
    let files: Vec<Vec<u8>> = vec![
        vec![],
        vec![1, 2, 3],
        u64::MAX.to_le_bytes().to_vec(),
        [&1000u64.to_le_bytes()[..], b"{}"].concat(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"more"].concat(),
        lying(b"\xff\xfe{}", b""),
        lying(b"not json", b""),
        lying(deep.as_bytes(), b""),
        lying(two.as_bytes(), &[0; 12]),
        lying(&entry("[2]", "[0,4]"), &[0; 4]),
        lying(&entry("[2]", "[8,0]"), &[0; 8]),
        lying(&entry("[2]", "[4,12]"), &[0; 12]),
        lying(&entry("[2]", "[0,8]"), &[0; 4]),
        lying(&entry("[-2]", "[0,8]"), &[0; 8]),
        lying(&entry("[4294967296,4294967296,4294967296]", "[0,8]"), &[0; 8]),
        lying(&entry("[9223372036854775807,4]", "[0,8]"), &[0; 8]),
        lying(br#"{"q":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]),
    ];
    for file in &files {
        let bed = Bed::new(file);
        bed.refused(&[], &["in.safetensors"]);
    }
    let missing = Bed::of(&qkv());
    std::fs::remove_file(&missing.input).unwrap();
    refused(&missing.arguments("softmax-attention", &[]), &["in.safetensors"]);
}

#[test]
fn damage_anywhere_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    let whole = bytes_of(&[f32s("q", &[1, 1, 2, 2]), i64s("key_lengths", &[1])]);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(tensors::read(&path).is_err(), "cut to {cut} bytes");
    }
    for position in 0..header {
        for value in [0, b'9', b'"', b'-', 0xff] {
            let mut damaged = whole.clone();
            damaged[position] = value;
            std::fs::write(&path, &damaged).unwrap();
            // Some damage makes another valid file; what counts is an answer.
            let _ = tensors::read(&path);
        }
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_anything_else() {
    let bed = Bed::of(&qkv());
    let run = |output: &Path| {
        let output = output.to_str().unwrap();
        let arguments = ["run", "softmax-attention", "--input", &bed.input, "--output", output, "--device", "cpu"];
        refused(&arguments, &[output]);
    };
    run(&bed.folder.path().join("no/such/folder/out.safetensors"));
    run(bed.folder.path());
    #[cfg(target_os = "linux")]
    run(&PathBuf::from("/dev/full"));
    assert_eq!(bed.files(), ["in.safetensors"]);

    // An error leaves what was there.
    std::fs::write(&bed.output, "precious").unwrap();
    refused(&bed.arguments("softmax-attention", &["--scale", "wide"]), &["--scale"]);
    assert_eq!(std::fs::read_to_string(&bed.output).unwrap(), "precious");
}

#[test]
fn bench_writes_one_row_a_variant_and_length() {
    let folder = tempfile::tempdir().unwrap();
    let (json, out) = (folder.path().join("rows.json"), folder.path().join("out"));
    let mut arguments = vec!["bench", "--device", "cpu", "--threads", "1", "--heads", "2", "--head-dim", "8"];
    arguments.extend(["--variants", "softmax-attention,linear-attention,softmax-attention", "--lengths", "32,8,16,8"]);
    arguments.extend(["--direction", "both", "--causal", "--json", json.to_str().unwrap()]);
    arguments.extend(["--out", out.to_str().unwrap()]);
    let (table, _) = expect(0, &arguments);
    let last = table.lines().last().unwrap();
    assert!(last.starts_with("On this CPU") && last.contains("linear-attention") && last.ends_with('.'), "{last}");

    let file: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rows = file["rows"].as_array().unwrap();
    let found: Vec<_> = rows.iter().map(|r| (r["variant"].as_str().unwrap(), r["length"].as_u64().unwrap())).collect();
    let expected = ["softmax-attention", "linear-attention"].into_iter().flat_map(|v| [8, 16, 32].map(|t| (v, t)));
    assert_eq!(found, expected.collect::<Vec<_>>());
    for row in rows {
        let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted = vec![
            "variant",
            "direction",
            "device",
            "dtype",
            "batch",
            "heads",
            "length",
            "head_dim",
            "causal",
            "median_ms",
            "min_ms",
            "tflops",
            "gbps",
            "peak_bytes",
            "error",
        ];
        // Softmax attention's features, none of which was asked for.
        wanted.extend(["window", "softcap", "alibi", "dropout", "kv_heads", "bias", "mask", "ragged", "unordered"]);
        wanted.sort_unstable();
        assert_eq!(keys, wanted);
        assert_eq!((row["direction"].as_str(), row["device"].as_str()), (Some("both"), Some("cpu")));
        assert_eq!(row["error"].is_null(), row["variant"] == "softmax-attention");
        assert!(row["median_ms"].as_f64().unwrap() >= row["min_ms"].as_f64().unwrap());
        assert!(row["peak_bytes"].as_u64().unwrap() > 0);
    }
    assert!(file["exponents"]["linear-attention"]["both"].is_number());
    assert_eq!(file["crossovers"][0]["variant"], "linear-attention");
    let copy: Value = serde_json::from_slice(&std::fs::read(out.join("bench.json")).unwrap()).unwrap();
    assert_eq!(copy, file);
    assert_eq!(std::fs::read_to_string(out.join("bench.csv")).unwrap().lines().count(), 7);
    assert!(std::fs::read_to_string(out.join("bench.svg")).unwrap().contains("linear-attention"));
    assert!(std::fs::read(out.join("bench.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn bench_times_recurrences_beside_attention() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("rows.json");
    let mut arguments = vec!["bench", "--device", "cpu", "--threads", "1", "--heads", "2", "--head-dim", "8"];
    arguments.extend(["--variants", "softmax-attention,gru,rnn", "--lengths", "4,8", "--inputs", "5", "--layers", "2"]);
    arguments.extend(["--bidirectional", "--direction", "both", "--json", json.to_str().unwrap()]);
    expect(0, &arguments);
    let file: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rows = file["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        let sizes = ["hidden", "inputs", "layers", "bidirectional"].map(|name| row[name].to_string());
        // Attention's rows have no such sizes, and its width is the default of theirs.
        let expected = if row["variant"] == "softmax-attention" { ["null"; 4] } else { ["16", "5", "2", "true"] };
        assert_eq!(sizes, expected);
        // A recurrence approximates nothing.
        assert!(row["error"].is_null() && row["tflops"].as_f64().unwrap() > 0.0);
    }
    assert!(file["exponents"]["gru"]["both"].is_number());
    assert!(file["crossovers"].as_array().unwrap().iter().any(|c| c["variant"] == "gru"));

    refused(&["bench", "--device", "cpu", "--hidden", "8", "--lengths", "4"], &["--hidden", "--variants"]);
    let both = ["bench", "--device", "cpu", "--variants", "gru", "--lengths", "4", "--causal", "--bidirectional"];
    refused(&both, &["--bidirectional", "--causal"]);
    refused(&["bench", "--device", "cpu", "--variants", "lstm"], &["lstm", "softmax-attention", "gru"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for arguments in [&["completions", "bash"][..], &["run", "--list"], &["devices"], &["--help"]] {
        let program = assert_cmd::cargo::cargo_bin("attn");
        let mut child = std::process::Command::new(program)
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    }
}
