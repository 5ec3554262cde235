use super::*;

const TEXT: &str = "low lower lowest, low low\nnewer newest new ☕ été low lower\n";

fn learn(choice: Choice, min_count: u64, size: usize) -> Tokenizer {
    Tokenizer::new(&choice, min_count, size, "text", [Ok(TEXT.to_string())].into_iter()).unwrap()
}

#[test]
fn every_kind_survives_its_file_and_encodes_as_the_library_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    for (choice, text) in
        [(Choice::Characters, TEXT), (Choice::Words, "low été  x\tnewest"), (Choice::Bpe, "naïve ☕\n")]
    {
        let tokenizer = learn(choice, 1, 300);
        std::fs::write(&path, tokenizer.to_json().to_string()).unwrap();
        let again = Tokenizer::at(directory.path()).unwrap();
        assert_eq!(again, tokenizer);
        assert_eq!(again.digest(), tokenizer.digest());
        let tokens = again.encode(text, "text").unwrap();
        assert_eq!(tokens, tokenizer.encode(text, "text").unwrap());
        let library = tokenizers::Tokenizer::from_file(&path).unwrap();
        let theirs: Vec<i32> = library.encode(text, false).unwrap().get_ids().iter().map(|&id| id as i32).collect();
        assert_eq!(tokens, theirs, "{}", tokenizer.unit());
        assert!(tokens.iter().all(|&t| (t as usize) < tokenizer.len()));
    }
}

#[test]
fn bpe_learns_merges_and_knows_every_text() {
    let tokenizer = learn(Choice::Bpe, 1, 280);
    assert!(tokenizer.len() <= 280 && tokenizer.len() > 257);
    let text = "low\u{1f600} <x>\0\r\n";
    let tokens = tokenizer.encode(text, "text").unwrap();
    assert_eq!(tokenizer.decode(&tokens), text);
    assert_eq!(tokenizer.encode("low", "text").unwrap().len(), 1, "the commonest word is one token");
    let Specials { start, stop, unknown, padding } = tokenizer.specials();
    assert_eq!((start, unknown, padding), (stop, None, None));
    assert_eq!(tokenizer.decode(&[start.unwrap()]), END_OF_TEXT);
    assert!(Tokenizer::new(&Choice::Bpe, 1, 257, "text", std::iter::empty()).is_err());
}

/// A hand-made GPT-2 directory: "low" takes two merges, in their order.
#[test]
fn gpt2_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    assert!(Tokenizer::at(directory.path()).unwrap_err().to_string().contains("vocab.json: cannot be read"));
    let vocab = r#"{"l":0,"o":1,"w":2,"Ġ":3,"lo":4,"low":5,"Ġlow":6,"<|endoftext|>":7,"e":8}"#;
    write("vocab.json", vocab);
    write("merges.txt", "#version: 0.2\nl o\nlo w\nĠ low\n");
    let tokenizer = Tokenizer::at(directory.path()).unwrap();
    assert_eq!(tokenizer.len(), 9);
    assert_eq!(tokenizer.encode("lowl low<|endoftext|>", "text").unwrap(), [5, 0, 6, 7]);
    assert_eq!(tokenizer.specials().start, Some(7));
    // Bytes that this vocabulary lacks would vanish.
    let error = tokenizer.encode("low\nloxw", "t.txt").unwrap_err().to_string();
    assert!(error.contains("t.txt: \"x\" at position 6 (line 2) is not in the vocabulary"), "{error}");
    write("merges.txt", "#version: 0.2\nl x\n");
    let error = Tokenizer::at(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds no byte-level BPE"), "{error}");
    assert!(Tokenizer::at(&directory.path().join("none")).is_err());
}

#[test]
fn tokens_decode_as_they_come() {
    for (choice, text) in
        [(Choice::Words, "low lower low"), (Choice::Bpe, "low ☕ été☕"), (Choice::Characters, "low été")]
    {
        let tokenizer = learn(choice, 1, 270);
        let tokens = tokenizer.encode(text, "text").unwrap();
        let mut decoder = tokenizer.decoder(&tokens[..1]);
        let mut shown = tokenizer.decode(&tokens[..1]);
        for &token in &tokens[1..] {
            let new = decoder.push(token);
            assert!(!new.contains(char::REPLACEMENT_CHARACTER));
            shown += &new;
        }
        assert_eq!(shown + &decoder.finish(), text);
    }
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    for (text, words) in
        [("{", "is not JSON"), ("{}", "is no tokenizer"), (r#"{"model":{"type":"Pear"}}"#, "no tokenizer")]
    {
        std::fs::write(&path, text).unwrap();
        let error = Tokenizer::read(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("tokenizer.json"), "{error}");
    }
    let rare = Tokenizer::new(&Choice::Words, 99, 0, "t.txt", [Ok(TEXT.to_string())].into_iter()).unwrap_err();
    assert!(rare.to_string().contains("--min-count 99: no word of t.txt occurs so often"), "{rare}");
}
