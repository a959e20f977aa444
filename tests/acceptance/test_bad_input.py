"""What the user can mend is one line on stderr and exit code 2, and leaves nothing half-made."""

import shutil

import pytest
import torch
from sqlalchemy import text

from nbtl_search.ledger import schema

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(shared_program, tiny):
    """A home with one study."""
    shared_program.ok(*tiny, "--epochs", 2, "--trials", 2)
    return shared_program


def refused(program, *arguments, says, **environment):
    """Run what must be refused; check the line, and that the studies are as before."""
    before = sorted(path for path in program.home.iterdir())
    done = program.run(*arguments, **environment)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    for part in says:
        assert part in lines[0], lines[0]
    assert done.stdout == ""
    assert sorted(path for path in program.home.iterdir()) == before
    return lines[0]


def with_change(tiny, *, name="other", **changes):
    """Return the arguments of `create` with some options changed."""
    arguments = list(tiny)
    for option, value in {"name": name, **changes}.items():
        flag = f"--{option.replace('_', '-')}"
        arguments[arguments.index(flag) + 1] = value
    return arguments


def studies(program):
    return program.ok("list", "--json")


def test_an_unknown_dataset_gets_the_list(made):
    refused(made, "create", "--dataset", "dtt", says=["'dtt'", "dtd", "caltech256", "textures"])


def test_an_unknown_key_gets_the_nearest(made, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text('name = "x"\n[data]\ndataset = "dtd"\n[train]\nepoch = 3\n')
    refused(made, "create", "--study", study, says=["'train.epoch'", "'epochs'"])
    refused(made, "create", "--dataset", "dtd", "--set", "trian.epochs=3", says=["'train'"])


def test_what_is_no_toml_is_named_with_its_line(made, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text("name = \n")
    refused(made, "create", "--study", study, says=["study.toml", "line 1"])


def test_a_corrupt_image_is_named_and_can_be_left_out(made, tiny, images, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    bad = folder / "stripes-2" / "00.png"
    bad.write_bytes(bad.read_bytes()[:100])
    before = studies(made)
    refused(made, *with_change(tiny, dataset=folder), says=[str(bad), "--skip-corrupt"])
    assert studies(made) == before
    refused(made, "prepare", folder, "--set", "data.image_px=32", says=[str(bad)])
    made.ok("prepare", folder, "--set", "data.image_px=32", "--skip-corrupt")


def test_a_class_with_too_few_images_is_named(made, tiny, images, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    (folder / "lonely").mkdir()
    shutil.copy(images / "stripes-2" / "00.png", folder / "lonely" / "a.png")
    refused(made, *with_change(tiny, dataset=folder), says=["lonely"])


def test_a_weights_file_that_cannot_be_read_is_refused(made, tiny, tmp_path):
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"\x00" * 200)
    before = studies(made)
    refused(made, *with_change(tiny, weights=broken), says=[str(broken)])
    missing = tmp_path / "none.pth"
    refused(made, *with_change(tiny, weights=missing), says=[str(missing)])
    assert studies(made) == before


def test_weights_of_another_network_are_refused(made, tiny, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3, 3)}, other)
    refused(made, *with_change(tiny, weights=other), says=[str(other), "test_resnet"])


@pytest.mark.parametrize("verb", ["status", "worker", "launch", "best", "pause", "delete"])
def test_a_study_that_does_not_exist_gets_the_list(made, verb):
    refused(made, verb, "tiney", says=["'tiney'", "tiny"])


def test_one_name_for_two_specifications_is_refused(made, tiny):
    refused(made, *tiny, "--epochs", 3, "--trials", 2, says=["'tiny'", "train.epochs: 2 != 3"])
    made.ok(*tiny, "--epochs", 2, "--trials", 2)


def test_a_database_out_of_reach_is_named_without_its_password(made):
    line = refused(
        made, "list", says=["127.0.0.1"],
        NBTL_STORAGE="postgresql://me:hidden-word@127.0.0.1:9/none",
    )  # fmt: skip
    assert "hidden-word" not in line


def test_a_refused_password_is_not_repeated(made):
    storage = made.open()
    url = storage.url.set(password="hidden-word").render_as_string(hide_password=False)
    storage.close()
    line = refused(made, "list", says=["password"], NBTL_STORAGE=url)
    assert "hidden-word" not in line


def test_a_password_on_the_command_line_is_refused(made):
    line = refused(
        made, "list", "--storage", "postgresql://me:hidden-word@127.0.0.1/none",
        says=["NBTL_STORAGE_FILE"],
    )  # fmt: skip
    assert "hidden-word" not in line


def test_another_kind_of_database_is_refused(made):
    refused(made, "list", says=["PostgreSQL", "sqlite"], NBTL_STORAGE="sqlite:///x.db")


def test_tables_of_another_version_get_the_command_to_run(made):
    storage = made.open()

    def version(number):
        with storage.engine.begin() as connection:
            connection.execute(text("UPDATE nbtl_meta SET version = :to"), {"to": number})

    try:
        version(99)
        refused(made, "worker", "tiny", says=["99", "upgrade nbtl-search"])
        version(0)
        refused(made, "worker", "tiny", says=["nbtl-search db upgrade"])
    finally:
        version(schema.VERSION)
        storage.close()


def test_an_empty_database_gets_the_command_to_run(program):
    done = program.run("list")
    assert done.returncode == 2
    assert "nbtl-search db upgrade" in done.stderr
    program.ok("db", "upgrade")
    assert program.ok("list", "--json").strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("craete",), "'create'"),
        (("create",), "--dataset"),
        (("create", "--dataset", "textures", "--trials", "0"), "budget.n_trials"),
        (("create", "--dataset", "textures", "--set", "nonsense"), "KEY=VALUE"),
        (("status",), "STUDY"),
        (("train", "nowhere.toml"), "nowhere.toml"),
        (("launch", "tiny", "--workers", "0"), "--workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_slip_on_the_command_line_is_one_line(made, arguments, says):
    refused(made, *arguments, says=[says])


def test_a_damaged_recipe_is_refused(made, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[data]\ndataset = "textures"\n[dials]\nlr_hihg = 1\n')
    refused(made, "train", recipe, says=["'dials.lr_hihg'", "'lr_high'"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("finalize", "tinny"), ["'tinny'", "tiny"]),
        (("finalize", "tiny"), ["nbtl-search launch tiny", "nbtl-search stop tiny"]),
        (("report", "tinny"), ["'tinny'", "tiny"]),
        (("report", "tiny", "-o", "/nowhere/there.html"), ["/nowhere"]),
        (("export", "tinny", "-o", "out"), ["'tinny'", "tiny"]),
        (("export", "tiny", "-o", "out"), ["nbtl-search finalize tiny"]),
        (("predict", "/nowhere", "a.jpg"), ["/nowhere"]),
        (("reproduce", "dtdd"), ["'dtdd'", "aircraft", "dtd"]),
    ],
)
def test_what_follows_a_search_is_refused_alike(made, arguments, says):
    before = studies(made)
    refused(made, *arguments, says=says)
    assert studies(made) == before


@pytest.fixture
def files(tmp_path):
    """Files that cannot be meant: settings of Slurm and of a webhook, a backup."""
    (tmp_path / "slurm.toml").write_text("partitoin = 'gpu'\n")
    (tmp_path / "webhook.toml").write_text('url = "https://example.org/h"\nsecret = "short"\n')
    (tmp_path / "webhook.toml").chmod(0o600)
    (tmp_path / "x.backup").write_bytes(b"no backup")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("doctor", "tinny"), ["'tinny'", "tiny"]),
        (("preflight", "tinny"), ["'tinny'", "tiny"]),
        (("logs", "nobody"), ["'nobody'", "logs"]),
        (("clean", "tinny"), ["'tinny'", "tiny"]),
        (("notify", "tiny"), ["--webhook-file"]),
        (("notify", "tiny", "--webhook-file", "{files}/none.toml"), ["none.toml"]),
        (("notify", "tiny", "--webhook-file", "{files}/webhook.toml"), ["secret"]),
        (("db", "serve"), ["--host", "--off"]),
        (("db", "serve", "--host", "0.0.0.0"), ["--any-interface"]),  # noqa: S104
        (("db", "serve", "--host", "192.0.2.1"), ["192.0.2.1"]),
        (("db", "backup", "/nowhere/x.backup"), ["/nowhere"]),
        (("db", "restore", "{files}/none.backup"), ["none.backup"]),
        (("db", "restore", "{files}/x.backup"), ["pg_restore"]),
        (("launch", "tiny", "--slurm", "{files}/none.toml"), ["none.toml"]),
        (("launch", "tiny", "--slurm", "{files}/slurm.toml"), ["'partitoin'", "'partition'"]),
        (("launch", "tiny", "--dry-run"), ["--slurm"]),
        (("launch", "tiny", "--slots-per-gpu", "many"), ["--slots-per-gpu"]),
        (("worker", "tiny", "--metrics-port", "70000"), ["--metrics-port"]),
    ],
)
def test_what_operates_a_search_is_refused_alike(made, files, arguments, says):
    before = studies(made)
    refused(made, *(word.format(files=files) for word in arguments), says=says)
    assert studies(made) == before
    assert not (made.home / "postgres" / "serve.json").exists()


def test_slots_of_a_gpu_need_one(made):
    for wanted in ("2", "auto"):
        refused(
            made, "launch", "tiny", "--slots-per-gpu", wanted, says=["GPU", "--workers"],
            CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip


def test_a_budget_that_cannot_finish_the_first_rung_starts_nothing(made, tiny):
    made.ok(*with_change(tiny, name="brief"), "--set", "budget.wall_clock_h=1e-7")
    refused(made, "launch", "brief", says=["budget.wall_clock_h", "first comparison"])
    assert made.status("brief")["epochs_spent"] == 0
    made.ok("delete", "brief", "--yes")


def test_a_doctor_of_a_database_out_of_reach_says_so_and_exits_with_1(made):
    url = "postgresql://me:hidden-word@127.0.0.1:9/none"
    done = made.run("doctor", NBTL_STORAGE=url)
    assert done.returncode == 1
    assert "PROBLEM  database" in done.stdout
    assert "hidden-word" not in done.stdout + done.stderr
