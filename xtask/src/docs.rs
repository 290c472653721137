//! Tests of the documents: every page of the book can be reached, and every link leads somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::workspace;

/// All documents: those in the root, and the book's pages.
fn documents() -> Vec<PathBuf> {
    let docs = workspace().join("docs");
    [workspace(), &docs]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// The targets of the links `[text](target)` of a document, without code blocks.
fn links(document: &str) -> Vec<&str> {
    let mut in_code = false;
    let prose = document.lines().filter(|line| {
        let fence = line.starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    });
    prose
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "a [b](c.md) and [d](e#f)\n```\n[g](h)\n```\n[i](j)";
    assert_eq!(links(text), ["c.md", "e#f", "j"]);
}

#[test]
fn every_link_within_the_project_leads_to_a_file() {
    let documents = documents();
    assert!(documents.len() > 5, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let own = links(&text)
            .into_iter()
            .filter(|link| !link.contains("://"));
        for link in own {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            let target = document.parent().unwrap().join(file);
            assert!(target.exists(), "{}: {link}", document.display());
        }
    }
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let docs = workspace().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed = links(&summary);
    for page in documents() {
        if page.parent() != Some(Path::new(&docs)) || page.ends_with("SUMMARY.md") {
            continue;
        }
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(&name), "{name} is not in SUMMARY.md");
    }
}
