//! Completions, manual pages, help.

use std::process::Command;

use crate::sandbox::Sandbox;

#[test]
fn shells_can_complete() {
    let it = Sandbox::new();
    for (shell, syntax) in [
        ("bash", Some(["bash", "-n"])),
        ("zsh", Some(["zsh", "-n"])),
        ("fish", Some(["fish", "-n"])),
    ] {
        let ran = it.good(&["completions", shell]);
        for word in ["restore", "target-action", "standby"] {
            assert!(ran.stdout.contains(word), "{shell} knows no {word}");
        }
        let path = it.path(&format!("completions.{shell}"));
        std::fs::write(&path, &ran.stdout).unwrap();
        let Some([program, flag]) = syntax else { continue };
        // The shell itself says whether it can be read, where it is installed.
        if let Ok(status) = Command::new(program).arg(flag).arg(&path).status() {
            assert!(status.success(), "{shell}");
        }
    }
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let it = Sandbox::new();
    it.good(&["man", "pages"]);
    let pages = it.files("pages");
    let names: Vec<_> =
        pages.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    for name in ["backstay.1", "backstay-restore.1", "backstay-wal-push.1"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn the_name_alone_shows_what_there_is() {
    let it = Sandbox::new();
    let ran = it.run(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("Begin with `backstay init`"), "{ran}");
    let version = it.good(&["--version"]);
    assert_eq!(version.stdout, format!("backstay {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn colours_are_for_terminals() {
    let it = Sandbox::ready();
    for command in [&["list"][..], &["status"], &["frob"], &["check"], &["backup", "data"]] {
        let ran = it.run(command);
        assert!(!format!("{ran}").contains('\x1b'), "{ran}");
    }
}
