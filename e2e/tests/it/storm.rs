//! Two real nodes, one of which dies and is cut off under load.

use cxmpute_e2e::ground::alone;
use cxmpute_e2e::settings::{Counts, variable};
use cxmpute_e2e::storm::{Size, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_die_under_load_and_nobody_pays_for_it() {
    let _alone = alone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Where a run's files should be kept for reading.
    let kept =
        variable("CXMPUTE_STORM_FOLDER").map_or_else(|| folder.path().to_owned(), std::path::PathBuf::from);
    run(&kept, Size::of(Counts::from_environment())).await.unwrap().must_hold();
}
