"""The files that say where workers run are valid, and say what they should."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nbtl_search.errors import SpecError
from nbtl_search.launchers import kubernetes
from nbtl_search.launchers.slurm import SlurmSettings

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = (ROOT / "workers" / "Dockerfile").read_text("utf-8")
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)
RFC_1123 = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


def against_compose_schema(file):
    return subprocess.run(
        [
            sys.executable, "-m", "check_jsonschema",
            "--builtin-schema", "vendor.compose-spec", str(file),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def services():
    return yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]


class TestCompose:
    def test_it_follows_the_compose_specification(self):
        done = against_compose_schema(COMPOSE)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_schema_would_find_a_mistake(self, tmp_path):
        broken = tmp_path / "docker-compose.yml"
        broken.write_text(COMPOSE.read_text().replace("healthcheck:", "helthcheck:", 1))
        assert against_compose_schema(broken).returncode != 0

    def test_what_the_network_reaches_listens_on_loopback_unless_told(self):
        published = {name: one["ports"] for name, one in services().items() if "ports" in one}
        assert set(published) == {"postgres", "proxy"}
        for ports in published.values():
            assert all(re.match(r"\$\{NBTL_(DASHBOARD_)?BIND:-127\.0\.0\.1\}:", p) for p in ports)

    def test_the_dashboard_is_on_the_inner_network_only(self):
        assert services()["dashboard"]["networks"] == ["inside"]
        assert yaml.safe_load(COMPOSE.read_text())["networks"]["inside"]["internal"] is True

    def test_no_password_is_written_down(self):
        for service in services().values():
            for key, value in service.get("environment", {}).items():
                assert key.endswith("_FILE") or "PASSWORD" not in key, (key, value)
                assert "://" not in str(value)

    @pytest.mark.parametrize("name", ["dashboard", "proxy", "worker-cpu", "worker-gpu", "schema"])
    def test_containers_are_confined(self, name):
        service = services()[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]

    def test_every_file_it_mounts_is_there(self):
        for volume in services()["proxy"]["volumes"]:
            source = volume.split(":/")[0].replace("${NBTL_PROXY:-server}", "server")
            assert (ROOT / source).is_file(), volume
        assert (ROOT / "workers" / "proxy" / "tls.conf").is_file()


class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.31", "1.35"])
    def test_it_follows_the_schemas_of_kubernetes(self, version):
        for document in yaml.safe_load_all(kubernetes.manifest("dtd", workers=8)):
            kubernetes_validate.validate(document, version, strict=True)

    def test_the_schemas_would_find_a_mistake(self):
        _, job = yaml.safe_load_all(kubernetes.manifest("dtd", workers=8))
        job["spec"]["paralelism"] = 8
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(job, "1.31", strict=True)

    def test_the_repositorys_is_what_the_command_prints(self):
        done = subprocess.run(
            [sys.executable, "-m", "nbtl_search.cli", "launch", "dtd", "--kubernetes",
             "--workers", "8"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == (ROOT / "workers" / "kubernetes.yaml").read_text("utf-8")

    @given(NAMES)
    def test_any_study_has_a_valid_name_and_is_passed_as_it_is(self, study):
        volume, job = yaml.safe_load_all(kubernetes.manifest(study, workers=1))
        for document in (volume, job):
            assert re.fullmatch(RFC_1123, document["metadata"]["name"])
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["args"][:2] == ["worker", study]

    @pytest.mark.parametrize(
        "study", ["a\nkind: Pod", "$(NBTL_HOME)", "a: b", "--help", "", "dtd\n", "\x85", "a b"]
    )
    def test_what_no_study_is_called_is_refused(self, study):
        with pytest.raises(SpecError, match="a study's name must match"):
            kubernetes.manifest(study, workers=1)

    @pytest.mark.parametrize("image", ["a\nkind: Pod", "a b", "", "a\u2028"])
    def test_what_is_no_image_is_refused(self, image):
        with pytest.raises(SpecError, match="--image must be"):
            kubernetes.manifest("dtd", workers=1, image=image)

    def test_another_image_is_used_and_noted(self):
        image = "registry.example.org/lab/nbtl@sha256:0123"
        text = kubernetes.manifest("dtd", workers=1, image=image)
        _, job = yaml.safe_load_all(text)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == image
        assert f"# nbtl-search launch dtd --kubernetes --workers 1 --image {image}\n" in text

    def test_a_worker_may_wait_for_its_database_before_it_must_answer(self):
        _, job = yaml.safe_load_all(kubernetes.manifest("dtd", workers=1))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        arguments = container["args"]
        start = container["startupProbe"]
        wait_s = float(arguments[arguments.index("--wait-s") + 1])
        assert start["periodSeconds"] * start["failureThreshold"] >= wait_s

    @given(NAMES, NAMES)
    def test_two_studies_have_two_names(self, one, other):
        names = {kubernetes._name(one), kubernetes._name(other)}
        assert len(names) == len({one, other})

    @given(st.text(st.characters(max_codepoint=126), max_size=40))
    def test_a_value_stays_a_value_whatever_it_holds(self, value):
        text = f"args: [worker, {kubernetes._quoted(value)}]\nnext: true\n"
        assert yaml.safe_load(text) == {"args": ["worker", value], "next": True}

    def test_an_image_that_looks_like_yaml_is_an_image(self):
        image = """"a':b#{c}[d],&e*f!g|h>i%j@k`$name"""
        _, job = yaml.safe_load_all(kubernetes.manifest("1e3", workers=1, image=image))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == image
        assert container["args"][:2] == ["worker", "1e3"]

    def test_no_secret_is_in_it(self):
        assert "PASSWORD@HOST" in kubernetes.manifest("dtd", workers=1)  # the comment's example
        for document in yaml.safe_load_all(kubernetes.manifest("dtd", workers=1)):
            assert "://" not in yaml.safe_dump(document).replace("http://127.0.0.1", "")

    @pytest.mark.parametrize("options", [[], ["--workers", "0"], ["--workers", "2", "--gpus", "0"]])
    def test_what_cannot_be_meant_is_one_line(self, options):
        done = subprocess.run(
            [sys.executable, "-m", "nbtl_search.cli", "launch", "dtd", "--kubernetes", *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert done.stdout == ""


class TestDockerfile:
    def test_it_runs_as_an_ordinary_user_with_a_probe(self):
        last = DOCKERFILE.rpartition("\nFROM ")[2]
        assert re.search(rf"^USER {kubernetes._USER}:{kubernetes._USER}$", last, re.MULTILINE)
        assert kubernetes._USER > 0
        assert re.search(r'^ENTRYPOINT \["nbtl-search"\]$', last, re.MULTILINE)
        assert re.search(r"^HEALTHCHECK ", last, re.MULTILINE)
        assert f'CMD ["python", "-c", "{kubernetes._PROBE}"]' in last

    def test_everything_it_copies_is_there_and_passes_the_ignore_file(self):
        allowed = (ROOT / ".dockerignore").read_text().splitlines()
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed

    def test_it_takes_the_locked_dependencies_and_no_secret(self):
        assert DOCKERFILE.count("uv sync --frozen") == 2
        assert not re.search(r"^(ENV|ARG) .*(PASSWORD|TOKEN|SECRET)", DOCKERFILE, re.MULTILINE)


class TestSlurmFile:
    def test_it_says_the_usual_values(self):
        content = tomllib.loads((ROOT / "workers" / "slurm.toml").read_text("utf-8"))
        assert SlurmSettings.parse(content) == SlurmSettings()

    def test_its_examples_are_valid_too(self):
        text = (ROOT / "workers" / "slurm.toml").read_text("utf-8")
        examples = re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
        parsed = SlurmSettings.parse(tomllib.loads(examples))
        assert parsed.partition == "gpu"
        assert dict(parsed.extra) == {"gres": "gpu:a100:1"}
