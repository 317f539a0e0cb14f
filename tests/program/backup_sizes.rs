//! Backups of every size around those of an upload's parts, made by the program.

use std::fs;
use std::path::Path;

use crate::support::place::Place;
use crate::support::presigned::presign;
use serde_json::Value;

const MIB: usize = 1 << 20;

/// Backs `tree` up to `place`, through presigned URLs with parts of 5 MiB if `presigned`, and gives the
/// backup's id.
fn create(place: &Place, tree: &Path, presigned: bool) -> String {
    let mut command = place.thawfs();
    command.arg("create").arg(tree);
    if presigned {
        let urls = place.bench.path("urls.json");
        let id = "00000001-1111-4222-8333-444444444444";
        fs::write(&urls, presign(place, id, 8, 5 << 20).to_string()).unwrap();
        command.arg("--presigned").arg(urls);
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", place.name);
    let handle: Value = serde_json::from_slice(&output.stdout).unwrap();
    handle["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_between_one_part_and_several_is_whole() {
    for (place, presigned) in [(Place::local(), false), (Place::s3(), false), (Place::s3(), true)] {
        let tree = place.bench.directory("tree");
        let mut noise = vec![0; 17 * MIB];
        getrandom::fill(&mut noise).unwrap();
        let part = if presigned { 5 * MIB } else { 8 * MIB };
        // The archive is somewhat larger than its one file, so that these lie on both sides of a seam.
        for size in [part - 4096, part + 100, part + part / 8, 2 * part - 4096, 2 * part + 100] {
            fs::write(tree.join("noise"), &noise[..size]).unwrap();
            let id = create(&place, &tree, presigned);
            let stored = fs::metadata(place.object(&format!("{id}/data.sqsh"))).unwrap().len();
            let case = format!("{}, presigned {presigned}, {size} bytes", place.name);
            assert!(stored >= size as u64, "{case}: {stored} in the bucket");
            let target = place.bench.path("target");
            let restored = place.run(&["restore", "--extract", &id, target.to_str().unwrap()]);
            let errors = String::from_utf8_lossy(&restored.stderr);
            assert!(restored.status.success(), "{case}: {errors}");
            assert!(fs::read(target.join("noise")).unwrap() == noise[..size], "{case}");
            fs::remove_dir_all(&target).unwrap();
        }
    }
}
