use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn attributes(mode: u32) -> Attributes {
    Attributes { mode, ..Attributes::implied(Time::default()) }
}

fn entry(name: &str, what: What) -> Entry {
    Entry { name: name.into(), what, attributes: attributes(0o644) }
}

fn file(name: &str) -> Entry {
    entry(name, What::File { size: 1 })
}

fn folder(name: &str) -> Entry {
    entry(name, What::Folder)
}

fn link(name: &str, target: &str) -> Entry {
    entry(name, What::Symlink(target.into()))
}

fn hard_link(name: &str, target: &str) -> Entry {
    entry(name, What::HardLink(target.into()))
}

/// A tree of layers, of which all must be taken.
fn tree(layers: &[&[Entry]]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        apply(&mut tree, layer);
    }
    tree
}

fn apply(tree: &mut Tree, layer: &[Entry]) {
    tree.begin_layer();
    for (number, entry) in (1..).zip(layer) {
        tree.apply(entry, number).unwrap_or_else(|error| panic!("{}: {error}", entry.shown()));
    }
}

/// What becomes of one more entry.
fn refused(layers: &[&[Entry]], last: Entry) -> TreeError {
    let mut tree = tree(layers);
    tree.begin_layer();
    tree.apply(&last, 1).unwrap_err()
}

/// All paths of a tree, with what is there in a letter or two.
fn listed(tree: &Tree) -> BTreeMap<String, String> {
    fn add(tree: &Tree, id: InodeId, path: &str, found: &mut BTreeMap<String, String>) {
        for (name, child) in tree.children(id) {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let inode = tree.inode(child);
            let what = match &inode.kind {
                Kind::Folder => format!("d {:o}", inode.attributes.mode),
                Kind::File { place, .. } => {
                    format!("f {:o} {}.{}", inode.attributes.mode, place.layer, place.entry)
                }
                Kind::Symlink(target) => format!("l {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            };
            found.insert(path.clone(), what);
            add(tree, child, &path, found);
        }
    }
    let mut found = BTreeMap::new();
    add(tree, Tree::ROOT, "", &mut found);
    found
}

fn paths(tree: &Tree) -> Vec<String> {
    listed(tree).into_keys().collect()
}

#[test]
fn names_begin_at_the_root_however_they_are_written() {
    let tree = tree(&[&[file("./a/b"), file("/a/c"), file("a//./d"), folder("a/"), folder("./")]]);
    assert_eq!(paths(&tree), ["/a", "/a/b", "/a/c", "/a/d"]);
    assert_eq!(tree.inode(Tree::ROOT).attributes.mode, 0o644);
}

#[test]
fn nothing_gets_out_of_the_root() {
    for name in ["../x", "a/../x", "a/..", "..", "/../x"] {
        assert_eq!(refused(&[], file(name)), TreeError::GoesUp, "{name}");
        assert_eq!(refused(&[&[file("f")]], hard_link("h", name)), TreeError::GoesUp, "{name}");
    }
    // Links that lead up end at the root, as they do for whoever runs in there.
    let lower: &[Entry] = &[link("up", "../../.."), link("far", "/../../etc"), folder("etc")];
    let tree = tree(&[lower, &[file("up/x"), file("far/y")]]);
    assert_eq!(paths(&tree), ["/etc", "/etc/y", "/far", "/up", "/x"]);
}

#[test]
fn the_folder_of_an_entry_may_be_a_link_of_a_lower_layer() {
    let merged: &[Entry] = &[folder("usr"), folder("usr/bin"), link("bin", "usr/bin"), file("bin/sh")];
    let found = tree(&[merged, &[file("bin/ls"), file("bin/.wh.sh")]]);
    assert_eq!(paths(&found), ["/bin", "/usr", "/usr/bin", "/usr/bin/ls"]);
    assert_eq!(found.find(b"bin/ls").unwrap().path, b"usr/bin/ls");
    // A link to what is not there is where that is made.
    let made = tree(&[&[link("run", "/var/run"), file("run/x")]]);
    assert_eq!(paths(&made), ["/run", "/var", "/var/run", "/var/run/x"]);
}

#[test]
fn links_that_lead_in_circles_are_refused() {
    let circle: &[Entry] = &[link("a", "b"), link("b", "a"), link("self", "self/x")];
    for name in ["a/x", "self/x"] {
        assert_eq!(refused(&[circle], file(name)), TreeError::Loop);
        assert_eq!(tree(&[circle]).find(name.as_bytes()), Err(TreeError::Loop));
    }
}

#[test]
fn an_entry_takes_the_place_of_what_has_its_name_and_only_a_folder_leaves_what_is_in_a_folder() {
    let lower: &[Entry] = &[folder("a"), file("a/x"), file("b"), link("c", "a")];
    let replaced = tree(&[lower, &[file("a"), folder("b"), folder("c"), file("c/y")]]);
    assert_eq!(paths(&replaced), ["/a", "/b", "/c", "/c/y"]);
    let kept = tree(&[lower, &[folder("a")]]);
    assert_eq!(paths(&kept), ["/a", "/a/x", "/b", "/c"]);
    assert_eq!(refused(&[lower], file("b/x")), TreeError::NotAFolder("b".to_owned()));
    assert_eq!(refused(&[lower], file("")), TreeError::Root);
    assert_eq!(refused(&[lower], link("./", "a")), TreeError::Root);
}

#[test]
fn of_one_name_twice_in_a_layer_the_last_counts() {
    let tree = tree(&[&[file("a"), file("a"), folder("b"), file("b/x"), file("b")]]);
    assert_eq!(listed(&tree)["/a"], "f 644 0.2");
    assert_eq!(listed(&tree)["/b"], "f 644 0.5");
}

#[test]
fn hard_links_are_names_of_one_file_and_lead_nowhere_else() {
    let lower: &[Entry] = &[folder("d"), file("d/f"), link("l", "d/f")];
    let mut linked = tree(&[lower, &[hard_link("h", "/d/f"), hard_link("s", "l"), hard_link("h", "h")]]);
    let id = |tree: &Tree, path: &[u8]| tree.find(path).unwrap().inode;
    assert_eq!(id(&linked, b"h"), id(&linked, b"d/f"));
    // A symbolic link has another name too, and is not followed.
    assert_eq!(listed(&linked)["/s"], "l d/f");
    // One of the names gets another file, and the other one keeps its own.
    apply(&mut linked, &[file("h")]);
    assert_ne!(id(&linked, b"h"), id(&linked, b"d/f"));
    assert_eq!(refused(&[lower], hard_link("h", "d")), TreeError::LinkToFolder("d".to_owned()));
    assert_eq!(refused(&[lower], hard_link("h", "/")), TreeError::LinkToFolder(String::new()));
    assert_eq!(refused(&[lower], hard_link("h", "etc/passwd")), TreeError::NoTarget("etc/passwd".to_owned()));
    // The folder that it would take the place of has the only name of the file.
    assert_eq!(refused(&[lower], hard_link("d", "d/f")), TreeError::NoTarget("d/f".to_owned()));
}

#[test]
fn whiteouts_hide_what_lies_below_and_nothing_of_their_own_layer() {
    let lower: &[Entry] = &[folder("a"), file("a/x"), file("a/y"), file("b")];
    for layer in [[file("a/.wh.x"), file("a/z")], [file("a/z"), file("a/.wh.x")]] {
        assert_eq!(paths(&tree(&[lower, &layer])), ["/a", "/a/y", "/a/z", "/b"]);
    }
    for layer in [[file(".wh.a"), file("a/z")], [file("a/z"), file(".wh.a")]] {
        assert_eq!(paths(&tree(&[lower, &layer])), ["/a", "/a/z", "/b"]);
        assert_eq!(listed(&tree(&[lower, &layer]))["/a"], "d 755", "what lay below is forgotten");
    }
    for layer in [[file("a/.wh..wh..opq"), file("a/z")], [file("a/z"), file("a/.wh..wh..opq")]] {
        assert_eq!(paths(&tree(&[lower, &layer])), ["/a", "/a/z", "/b"]);
        assert_eq!(listed(&tree(&[lower, &layer]))["/a"], "d 644");
    }
    let all = tree(&[lower, &[file(".wh..wh..opq"), file("b")]]);
    assert_eq!(listed(&all), BTreeMap::from([("/b".to_owned(), "f 644 1.2".to_owned())]));
}

#[test]
fn whiteouts_of_what_is_not_there_do_nothing_and_whiteouts_of_nothing_are_refused() {
    let lower: &[Entry] = &[file("b")];
    let nothing =
        [file(".wh.a"), file("a/.wh.x"), file("b/.wh.x"), file("a/.wh..wh..opq"), file(".wh..wh.plnk")];
    assert_eq!(paths(&tree(&[lower, &nothing])), ["/b"]);
    for name in [".wh.", ".wh..", ".wh...", "b/.wh..."] {
        let error = refused(&[&[folder("b")]], file(name));
        assert_eq!(error, TreeError::Whiteout, "{name}");
    }
}

#[test]
fn what_no_file_system_would_take_is_refused() {
    let long = "n".repeat(MAX_NAME + 1);
    assert_eq!(refused(&[], file(&long)), TreeError::Name);
    assert_eq!(refused(&[], file("a\0b")), TreeError::Name);
    assert_eq!(refused(&[], file(&"a/".repeat(MAX_PATH))), TreeError::Name);
    assert_eq!(refused(&[], file(&["a"; MAX_DEPTH + 1].join("/"))), TreeError::TooDeep);
    // Links that make a path deeper than it is written.
    let deep = ["a"; MAX_DEPTH - 1].join("/");
    assert_eq!(refused(&[&[link("l", &deep)]], file("l/b/c/d")), TreeError::TooDeep);
    tree(&[&[file(&["a"; MAX_DEPTH].join("/"))]]);
}

#[test]
fn names_and_attributes_of_an_image_are_bounded() {
    let mut tree = Tree::new();
    tree.begin_layer();
    let mut big = file("x");
    big.attributes.xattrs = vec![(b"user.x".to_vec(), vec![0; 1 << 20])];
    let error = (1..=MAX_TEXT >> 20).find_map(|number| tree.apply(&big, number).err());
    assert_eq!(error, Some(TreeError::TooMuchText));
}

#[test]
fn the_place_of_a_file_is_its_layer_and_entry() {
    let tree = tree(&[&[file("a")], &[], &[folder("d"), file("b")]]);
    let place = |path: &[u8]| match tree.inode(tree.find(path).unwrap().inode).kind {
        Kind::File { place, .. } => place,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(place(b"a"), Place { layer: 0, entry: 1 });
    assert_eq!(place(b"b"), Place { layer: 2, entry: 2 });
    assert_eq!(tree.find(b"c"), Err(TreeError::NotFound("c".to_owned())));
}

#[test]
fn trees_are_compared_path_by_path() {
    let lower: &[Entry] = &[folder("a"), file("a/x"), file("b"), link("l", "b"), file("same")];
    let before = tree(&[lower]);
    let mut mode = file("b");
    mode.attributes.mode = 0o600;
    mode.attributes.owner = 5;
    let mut after = before.clone();
    apply(&mut after, &[file(".wh.a"), mode, link("l", "c"), folder("n"), file("n/x")]);
    let changes = compare(&before, &after);
    let told: Vec<_> = changes
        .iter()
        .map(|it| (it.path.as_str(), it.before.is_some(), it.after.is_some(), it.changed.clone()))
        .collect();
    let expected = [
        ("/a", true, false, vec![]),
        ("/a/x", true, false, vec![]),
        ("/b", true, true, vec![Aspect::Content, Aspect::Mode, Aspect::Owner]),
        ("/l", true, true, vec![Aspect::Target]),
        ("/n", false, true, vec![]),
        ("/n/x", false, true, vec![]),
    ];
    assert_eq!(told, expected);
    // With the same bytes it is the same file, wherever these are.
    let (mut one, mut other) = (tree(&[&[file("f")]]), tree(&[&[], &[file("f")]]));
    assert_eq!(compare(&one, &other)[0].changed, [Aspect::Content]);
    for tree in [&mut one, &mut other] {
        let inode = tree.find(b"f").unwrap().inode;
        tree.set_content(inode, [7; 32]);
    }
    assert_eq!(compare(&one, &other), []);
}

/// What a layer does to one path, as a model knows it.
#[derive(Debug, Clone)]
enum Step {
    File(String, u32),
    Folder(String, u32),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4).prop_map(|it| it.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(0o755), Just(0o700), Just(0o644)];
    prop_oneof![
        3 => (path(), mode.clone()).prop_map(|(path, mode)| Step::File(path, mode)),
        3 => (path(), mode).prop_map(|(path, mode)| Step::Folder(path, mode)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A layer as an archive would have it.
fn entries(steps: &[Step]) -> Vec<Entry> {
    let with = |mut entry: Entry, mode| {
        entry.attributes.mode = mode;
        entry
    };
    let below = |folder: &str, name: &str| match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    };
    let made = steps.iter().map(|step| match step {
        Step::File(path, mode) => with(file(path), *mode),
        Step::Folder(path, mode) => with(folder(path), *mode),
        Step::Whiteout(path) => {
            let (folder, name) = split(path);
            file(&below(folder, &format!(".wh.{name}")))
        }
        Step::Opaque(path) => file(&below(path, ".wh..wh..opq")),
    });
    made.collect()
}

type Model = BTreeMap<String, String>;

/// The same in the plainest way: what a layer hides goes first, and then comes what it has. `None` if something would have to
/// be in a file.
fn model(model: &mut Model, layer: usize, steps: &[Step]) -> Option<()> {
    let is_below = |path: &str, folder: &str| path.strip_prefix(folder).is_some_and(|it| it.starts_with('/'));
    let is_file = |model: &Model, path: &str| model.get(path).is_some_and(|it| it.starts_with('f'));
    for step in steps {
        match step {
            Step::Whiteout(hidden) => {
                let hidden = format!("/{hidden}");
                model.retain(|path, _| *path != hidden && !is_below(path, &hidden));
            }
            Step::Opaque(folder) => {
                let folder = format!("/{folder}");
                model.retain(|path, _| !is_below(path, &folder));
            }
            _ => {}
        }
    }
    for (number, step) in (1..).zip(steps) {
        let (path, what) = match step {
            Step::File(path, mode) => (format!("/{path}"), format!("f {mode:o} {layer}.{number}")),
            Step::Folder(path, mode) => (format!("/{path}"), format!("d {mode:o}")),
            _ => continue,
        };
        let folders: Vec<&str> =
            path.match_indices('/').map(|(end, _)| &path[..end]).filter(|it| !it.is_empty()).collect();
        for folder in folders {
            if is_file(model, folder) {
                return None;
            }
            model.entry(folder.to_owned()).or_insert_with(|| "d 755".to_owned());
        }
        if what.starts_with('f') {
            model.retain(|it, _| !is_below(it, &path));
        }
        model.insert(path, what);
    }
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_make_what_the_plainest_model_makes_of_them(
        layers in proptest::collection::vec(proptest::collection::vec(step(), 0..8), 1..5)
    ) {
        let (mut tree, mut plain) = (Tree::new(), Model::new());
        for (layer, steps) in layers.iter().enumerate() {
            let before = tree.clone();
            tree.begin_layer();
            for (number, entry) in (1..).zip(entries(steps)) {
                match tree.apply(&entry, number) {
                    Ok(_) => {}
                    // Something would have to be in a file, which is so in the model too unless the file is hidden later.
                    Err(TreeError::NotAFolder(_)) => return Ok(()),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            prop_assert!(model(&mut plain, layer, steps).is_some());
            prop_assert_eq!(&listed(&tree), &plain);

            // What differs, told path by path, leads from the one to the other.
            let (old, new) = (listed(&before), listed(&tree));
            let changes = compare(&before, &tree);
            for change in &changes {
                prop_assert_eq!(change.before.is_some(), change.path == "/" || old.contains_key(&change.path));
                prop_assert_eq!(change.after.is_some(), change.path == "/" || new.contains_key(&change.path));
            }
            let told: Vec<&String> = changes.iter().map(|it| &it.path).collect();
            for path in old.keys().chain(new.keys()) {
                prop_assert_eq!(told.contains(&path), old.get(path) != new.get(path), "{}", path);
            }
            prop_assert_eq!(compare(&tree, &tree), vec![]);
        }
    }
}
