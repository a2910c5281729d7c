//! A sample of a text file is read without holding the file. A test of its own process: it looks at
//! the peak of what the process held.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::Write;

use attar_evaluate::Dataset;

const LINES: usize = 2_000_000;

fn peak_kilobytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_text() {
    let path = std::env::temp_dir().join(format!("attar-long-{}.txt", std::process::id()));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for line in 0..LINES {
        writeln!(file, "text {line} {}", "and so it goes on and on ".repeat(5)).unwrap();
    }
    file.into_inner().unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    let before = peak_kilobytes();
    let sample = Dataset::open_sample(&path, false, 300);
    let grown = peak_kilobytes() - before;
    std::fs::remove_file(&path).unwrap();
    let (data, bad) = sample.unwrap();
    assert_eq!((data.texts().len(), bad), (300, 0));
    assert!(data.texts()[299].starts_with(&format!("text {} ", 299 * LINES / 300)));
    assert!(size > 250_000_000 && grown < 8 * 1024, "{grown} kB for {size} bytes");
}
