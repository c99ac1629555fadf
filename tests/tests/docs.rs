//! The book holds together: every page is in the summary, and every link leads somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use accel_tests::binaries;
use anyhow::{Context as _, Result};

fn pages_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(pages_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// The targets of `[text](target)`, without those of the web and without `#fragments`.
fn local_links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for part in text.split("](").skip(1) {
        let Some((target, _)) = part.split_once(')') else {
            continue;
        };
        let target = target.split('#').next().unwrap_or_default();
        let local = !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
        if local {
            links.push(target.to_owned());
        }
    }
    links
}

#[test]
fn every_page_is_in_the_summary() -> Result<()> {
    let book = binaries::workspace().join("docs");
    let summary = fs::read_to_string(book.join("SUMMARY.md"))?;
    let listed: Vec<PathBuf> = local_links(&summary)
        .iter()
        .map(|link| book.join(link))
        .collect();
    for page in pages_below(&book)? {
        let is_summary = page.ends_with("SUMMARY.md");
        assert!(
            is_summary || listed.contains(&page),
            "{} is not in SUMMARY.md",
            page.display()
        );
    }
    Ok(())
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let root = binaries::workspace();
    let mut pages = pages_below(&root.join("docs"))?;
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        pages.push(root.join(name));
    }
    for page in pages {
        let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
        let dir = page.parent().context("a page lies in a directory")?;
        for link in local_links(&text) {
            assert!(
                dir.join(&link).exists(),
                "{} links to {link}, which is not there",
                page.display()
            );
        }
    }
    Ok(())
}
