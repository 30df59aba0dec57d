//! N3: nobody can enrol over somebody else's provision: other key or other owner is a conflict, the record untouched.

use anyhow::Result;
use cxmpute_wire::MicroCredits;

use crate::settings::Setting;
use crate::stand_in::Identity;
use crate::verdict::Verdict;
use crate::world::World;

/// The assertion that catches an unconditional upsert.
pub const CAUGHT_BY: &str = "a foreign enrolment is a conflict";

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("N3");
    let world = World::plan(setting).start().await?;
    let owner = world.account("owner@example.org", MicroCredits(0)).await?;
    let thief = world.account("thief@example.org", MicroCredits(0)).await?;
    for _ in 0..setting.counts.pick(5, 50) {
        verdict.count += 1;
        let (mine, theirs) = (Identity::fresh(), Identity::fresh());
        let id = mine.provision_id();
        let first = world.enrol(&mine, &id, Some(&world.grant(&owner.user_id).await?)).await?;
        verdict.check(
            "a new provision is created",
            first.status == 201,
            format!("{} {}", first.status, first.json()),
        );
        let again = world.enrol(&mine, &id, None).await?;
        verdict.check(
            "the same key and owner get the same answer again",
            again.status == 200 && same(&first.json(), &again.json()),
            again.json(),
        );
        let before = world.provision(&id).await?;

        let other_owner = world.enrol(&mine, &id, Some(&world.grant(&thief.user_id).await?)).await?;
        verdict.check(
            CAUGHT_BY,
            conflict(&other_owner),
            format!("same key, other owner: {} {}", other_owner.status, other_owner.json()),
        );
        let other_key = world.enrol(&theirs, &id, Some(&world.grant(&thief.user_id).await?)).await?;
        verdict.check(
            CAUGHT_BY,
            conflict(&other_key),
            format!("same id, other key: {} {}", other_key.status, other_key.json()),
        );
        let after = world.provision(&id).await?;
        verdict.check(
            "the original is untouched",
            before == after && after.contains(owner.user_id.as_str()),
            format!("{before} / {after}"),
        );
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

fn conflict(reply: &crate::client::Reply) -> bool {
    reply.status == 409 && reply.error_code() == "node_conflict"
}

/// Equal but for the server's clock.
fn same(left: &serde_json::Value, right: &serde_json::Value) -> bool {
    ["provision_id", "owner", "state", "control_plane"].iter().all(|name| left[*name] == right[*name])
}
