use super::*;
use crate::io::Target;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn first(n: usize) -> ReadOptions {
    ReadOptions { first: Some(n), ..Default::default() }
}

#[test]
fn text_is_read_with_and_without_a_header() {
    let folder = Folder::new();
    let body = "the 1 -2.5 3e-1\n. . . 4 5 6\nno\u{a0}break\u{85} 7 8 9 \r\nthe 0 0 0\n12 1 1 1";
    for (name, text) in [("g.txt", body.to_string()), ("w.txt", format!("5 3\n{body}\n\n"))] {
        let path = folder.file(name, text);
        let (vectors, remarks) = read(&path, &ReadOptions::default()).unwrap();
        assert_eq!(vectors.words, ["the", ". . .", "no\u{a0}break\u{85}", "12"]);
        assert_eq!(vectors.table, [1.0, -2.5, 0.3, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 1.0, 1.0]);
        assert_eq!(remarks, ["left out: 1 vectors of words that had one already, such as \"the\""]);
        let (vectors, remarks) = read(&path, &first(2)).unwrap();
        assert_eq!((vectors.words.len(), vectors.table.len(), remarks.len()), (2, 6, 0));
    }
    // Vectors of one number: a first line of two counts is taken for that.
    assert!(read(&folder.file("one.txt", "7 1\n2 3\n"), &ReadOptions::default()).is_err());
    let (vectors, _) = read(&folder.file("one.txt", "a 1\n2 3\n"), &ReadOptions::default()).unwrap();
    assert_eq!((vectors.dim, vectors.table), (1, vec![1.0, 3.0]));
}

/// So many lines that they are parsed in many shares: every one arrives, in its place.
#[test]
fn long_text_keeps_its_order() {
    let folder = Folder::new();
    let n = 60_000;
    let mut text: String = (0..n).map(|i| format!("word{i} {i}.5 -{i} 0.001\n")).collect();
    let path = folder.file("long.txt", &text);
    assert!(text.len() > 4 << 18);
    let (vectors, _) = read(&path, &ReadOptions::default()).unwrap();
    assert_eq!((vectors.words.len(), vectors.dim), (n, 3));
    for i in 0..n {
        assert_eq!(vectors.words[i], format!("word{i}"));
        assert_eq!(vectors.row(i), [i as f32 + 0.5, -(i as f32), 0.001]);
    }
    assert_eq!(read(&path, &first(n - 1)).unwrap().0.words.len(), n - 1);
    text.push_str("last 1 2\n");
    let error = read(&folder.file("long.txt", &text), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("line 60001 has 2 numbers, the others have 3"), "{error}");
}

#[test]
fn bad_text_is_named_by_line() {
    let folder = Folder::new();
    let lines = "x 1 2 3\n".repeat(150);
    for (tail, expected) in [
        ("a 1 2", "line 151 has 2 numbers, the others have 3"),
        ("a 1 2 3 4", "line 151 has 4 numbers, the others have 3"),
        ("a b 1 2", "line 151 has \"b\", which is no finite number"),
        ("a 1 nan 3", "line 151 has \"nan\", which is no finite number"),
        (" 1 2 3", "line 151 has no word before its numbers"),
    ] {
        let error = read(&folder.file("t.txt", format!("{lines}{tail}")), &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    for (text, expected) in [
        (&b"a 1 2\n\xff 1 2\n"[..], "line 2 is not UTF-8"),
        (b"3 2\na 1 2\nb 1 2\n", "holds 2 vectors, and says in its first line 3"),
        (b"1 3\na 1 2\n", "vectors have 3 numbers, and they have 2"),
        (b"word\n", "line 1 is no word with numbers"),
        (b"", "is empty"),
    ] {
        let error = read(&folder.file("t.txt", text), &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let path = folder.file("t.txt", "a 1\n");
    let options = ReadOptions { embedding_key: Some("x".into()), ..Default::default() };
    assert!(read(&path, &options).unwrap_err().to_string().contains("--embedding-key x: is for tensors"));
    assert!(read(&path, &first(0)).is_err() && read(folder.0.path(), &first(1)).is_err());
}

fn binary(ends: &str) -> Vec<u8> {
    let mut bytes = b"3 2\n".to_vec();
    for (word, row) in [("é", [0.5f32, -1.0]), ("b", [1e-9, 3.25]), ("in the", [7.0, 8.0])] {
        bytes.extend(word.replace(' ', "_").as_bytes());
        bytes.push(b' ');
        row.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        bytes.extend(ends.as_bytes());
    }
    bytes
}

#[test]
fn binary_is_read_with_and_without_ends_of_lines() {
    let folder = Folder::new();
    for ends in ["", "\n"] {
        let bytes = binary(ends);
        let (vectors, _) = read(&folder.file("v.bin", &bytes), &ReadOptions::default()).unwrap();
        assert_eq!(vectors.words, ["é", "b", "in_the"]);
        assert_eq!((vectors.dim, &vectors.table[..]), (2, &[0.5, -1.0, 1e-9, 3.25, 7.0, 8.0][..]));
        assert_eq!(read(&folder.file("v.bin", &bytes), &first(1)).unwrap().0.words, ["é"]);
        for cut in [bytes.len() - 2 - ends.len(), bytes.len() - 10] {
            let error = read(&folder.file("v.bin", &bytes[..cut]), &ReadOptions::default()).unwrap_err().to_string();
            assert!(error.contains("ends within vector 3 of 3"), "{error}");
        }
    }
}

#[test]
fn tensors_take_their_words_from_json() {
    let folder = Folder::new();
    let path = folder.0.path().join("word2vec.pt");
    let tensor = |name: &str, values: &[f64]| (name.to_string(), vec![3, 2], values.to_vec());
    let (target, context) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.5; 6]);
    let both = [tensor("context_embeddings.weight", &context), tensor("target_embeddings.weight", &target)];
    crate::io::pytorch::write(&Target::new(&path).unwrap(), &both).unwrap();
    let options = |index: &str, key: Option<&str>| ReadOptions {
        word_index: Some(folder.file("index.txt", index)),
        embedding_key: key.map(String::from),
        first: None,
    };
    let index = r#"{"b": 1, "<UNK>": 0, "c": 2}"#;
    let (vectors, remarks) = read(&path, &options(index, None)).unwrap();
    assert_eq!(vectors.words, ["<UNK>", "b", "c"]);
    assert_eq!((&vectors.table[..], remarks.len()), (&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..], 0));
    let (vectors, remarks) = read(&path, &options(r#"{"2": "c"}"#, Some("context_embeddings.weight"))).unwrap();
    assert_eq!((vectors.words, vectors.table), (vec!["c".to_string()], vec![0.5, 0.5]));
    assert!(remarks[0].starts_with("left out: 2 of 3 vectors have no word"), "{remarks:?}");

    let problem = |options: &ReadOptions| read(&path, options).unwrap_err().to_string();
    assert!(problem(&ReadOptions::default()).contains("give --word-index FILE"));
    assert!(problem(&options(r#"{"x": 3}"#, None)).contains("\"x\" has row 3, and tensor `target_embeddings.weight`"));
    let wrong = problem(&options(index, Some("weight")));
    assert!(
        wrong.contains("--embedding-key weight: is not among the tensors") && wrong.contains("context_"),
        "{wrong}"
    );

    let written = |name: &str| tensors_file(&folder, name);
    assert_eq!(read(&written("any.weight"), &options(index, None)).unwrap().0.row(2), [5.0, 6.0], "the only matrix");
    let cut = folder.file("cut.pt", &std::fs::read(&path).unwrap()[..200]);
    assert!(read(&cut, &options(index, None)).unwrap_err().to_string().contains("cut.pt: is no zip archive"));
    let old = folder.file("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.more");
    let error = read(&old, &options(index, None)).unwrap_err().to_string();
    assert!(error.contains("before 1.6; convert it: torch.save(torch.load("), "{error}");
}

fn tensors_file(folder: &Folder, name: &str) -> PathBuf {
    use crate::io::tensors::{Dtype, Written, write};
    let path = folder.0.path().join("v.safetensors");
    let values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tensor = Written { name: name.into(), dtype: Dtype::F32, shape: vec![3, 2], values };
    write(&Target::new(&path).unwrap(), &[tensor]).unwrap();
    path
}

#[test]
fn coverage_counts_words_of_the_vocabulary() {
    let vectors = WordVectors { dim: 2, words: vec!["a".into(), "b".into()], table: vec![1.0, 2.0, 3.0, 4.0] };
    let special = crate::data::SpecialTokens { pad: Some("<PAD>".into()), unk: None };
    let index = WordIndex::from_vectors(&["b".into(), "x".into(), "y".into()], &special);
    let (table, coverage) = vectors.table_for(&index);
    assert_eq!(table, [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(coverage.remark("words"), "1 of 3 words have vectors (33.3 %)");
}
