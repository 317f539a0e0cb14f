//! What the documents name is there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;

/// The text of each module of tests by its name: of the two programs, of the scripts that run on a mount, and of the
/// library's own.
fn modules() -> HashMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut modules = HashMap::<String, String>::new();
    for place in ["tests", "src"] {
        for entry in walkdir::WalkDir::new(root.join(place)) {
            let path = entry.unwrap().into_path();
            let ending = path.extension().and_then(OsStr::to_str);
            if !matches!(ending, Some("rs" | "py")) {
                continue;
            }
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let name = match stem {
                "mod" => path.parent().unwrap().file_name().unwrap().to_str().unwrap(),
                stem => stem,
            };
            let text = std::fs::read_to_string(&path).unwrap();
            modules.entry(name.to_owned()).or_default().push_str(&text);
        }
    }
    modules
}

/// The tests that a line of a table names: `module::test`, and `::test` for another of the same module.
fn named(line: &str) -> Vec<(String, String)> {
    let mut module = String::new();
    let mut named = Vec::new();
    for word in line.split('`').skip(1).step_by(2) {
        let is_name = |part: &str| {
            part == "*" || part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        if !word.contains("::") || !word.split("::").all(is_name) {
            continue;
        }
        let (path, test) = word.rsplit_once("::").unwrap();
        if let Some(first) = path.split("::").next().filter(|first| !first.is_empty()) {
            module = first.to_owned();
        }
        named.push((module.clone(), test.to_owned()));
    }
    named
}

#[test]
fn every_test_that_the_promises_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = modules();
    let promises = std::fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let rows = promises.lines().filter(|line| line.starts_with('|'));
    let all: Vec<_> = rows.flat_map(named).collect();
    assert!(all.len() > 100, "{}", all.len());
    let is_there = |(module, test): &&(String, String)| {
        let is_in = |text: &String| {
            let is_defined = |word: &str| text.contains(&format!("{word} {test}("));
            test == "*" || is_defined("fn") || is_defined("def")
        };
        modules.get(module).is_some_and(is_in)
    };
    let missing: Vec<_> = all.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_name_of_a_test_is_told_from_other_words() {
    let line = "| `a::b`, `::c` and `d::e::f`, `server::*` of `Foo::bar` and `x` | `::g` |";
    let expected = [("a", "b"), ("a", "c"), ("d", "f"), ("server", "*"), ("server", "g")];
    assert_eq!(named(line), expected.map(|(module, test)| (module.to_owned(), test.to_owned())));
}

/// The files that a line of a document names: those of the repository's directories, by their paths or, of Rust, by
/// the ends of them.
fn files_named(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split('`').skip(1).step_by(2).filter_map(|code| code.split(' ').next());
    words.filter(|word| {
        let top = word.split_once('/').map(|(top, _)| top);
        word.ends_with(".rs")
            || matches!(top, Some("src" | "tests" | "examples" | "docs" | "scripts"))
    })
}

#[test]
fn every_file_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let below = |tops: &[&str]| -> Vec<_> {
        let entries = tops.iter().flat_map(|top| walkdir::WalkDir::new(root.join(top)));
        entries.map(|entry| entry.unwrap().into_path()).collect()
    };
    let sources = below(&["src", "tests", "examples"]);
    let is_there = |name: &str| {
        root.join(name).exists()
            || name.ends_with(".rs") && sources.iter().any(|path| path.ends_with(name))
    };
    let mut named = 0;
    let mut missing = Vec::new();
    for document in below(&["docs", "README.md", "CONTRIBUTING.md"]) {
        if document.extension() != Some(OsStr::new("md")) {
            continue;
        }
        let text = std::fs::read_to_string(&document).unwrap();
        for name in text.lines().flat_map(files_named) {
            named += 1;
            if !is_there(name) {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(named > 100, "{named}");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_name_of_a_file_is_told_from_other_words() {
    let line = "| `src/a/`, `b/c.rs` | `scripts/d --all`, `x/y`, `z` and src/e of `overlayfs.rst` `f.rs` |";
    let named: Vec<_> = files_named(line).collect();
    assert_eq!(named, ["src/a/", "b/c.rs", "scripts/d", "f.rs"]);
}

/// The rooms of the library as `src/lib.rs` draws them, from top to bottom; those of a row stand beside each other.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let text = text.unwrap();
    let map = text.split("//! ```").nth(1).unwrap();
    // Names come first, in columns; what they mean begins behind these.
    let names = |line: &str| {
        let names = line.strip_prefix("//! ")?.get(..23)?.split_whitespace();
        Some(names.map(str::to_owned).collect())
    };
    map.lines().filter_map(names).collect()
}

#[test]
fn the_map_is_drawn_alike_in_the_library_and_in_its_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let lines = text.lines().map(|line| line.trim_start_matches("//! "));
        let map = lines.skip_while(|line| *line != "```text").skip(1);
        map.take_while(|line| *line != "```").map(str::to_owned).collect()
    };
    assert_eq!(map("docs/ARCHITECTURE.md"), map("src/lib.rs"));
    assert_eq!(map("src/lib.rs").len(), rows().len());
}

/// The rooms that `crate::` goes on to: one, or several in braces.
fn imported<'a>(rest: &'a str) -> Vec<&'a str> {
    let is_part = |byte: char| byte == '_' || byte.is_ascii_alphanumeric();
    let first = |name: &'a str| name.trim().split(|byte| !is_part(byte)).next().unwrap();
    match rest.strip_prefix('{') {
        Some(several) => several.split('}').next().unwrap().split(',').map(first).collect(),
        None => vec![first(rest)],
    }
}

#[test]
fn rooms_import_only_from_those_below_as_the_map_draws_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rows = rows();
    let row = |room: &str| rows.iter().position(|row| row.iter().any(|name| name == room));
    let mut rooms = 0;
    let mut upwards = Vec::new();
    for entry in walkdir::WalkDir::new(&source) {
        let path = entry.unwrap().into_path();
        let inside = path.strip_prefix(&source).unwrap();
        if path.extension().and_then(OsStr::to_str) != Some("rs") || inside.ends_with("main.rs") {
            continue;
        }
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let own = row(room).unwrap_or_else(|| panic!("the map lacks {room}"));
        rooms += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for used in code.flat_map(|line| line.split("crate::").skip(1)).flat_map(imported) {
            // What is none of the map is a macro, or a type that the root exports.
            if used != room && row(used).is_some_and(|other| other <= own) {
                upwards.push(format!("{} imports {used}", inside.display()));
            }
        }
    }
    assert!(rooms > 100, "{rooms}");
    assert!(upwards.is_empty(), "{upwards:#?}");
}
