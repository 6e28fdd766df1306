"""Object storage, really talked to: moto's S3 server at a plain http address, as MinIO is often run."""

import tempfile
import threading

import boto3
import lightning.pytorch as pl
import pytest
import requests
import torch
from test_data_convert import killed_at
from test_data_image_folder import error_of, write_images
from test_data_streamed import SMALL, assert_same_images, plain, streamed, views
from test_data_unlabelled import photos, unlabelled

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.cli.run_function import run
from distill_dynamics.data import StreamedImageFolder
from distill_dynamics.data.keyed import Key
from distill_dynamics.data.streaming import storage
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.errors import UserError
from distill_dynamics.losses import PooledKD


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(tmp_path_factory.getbasetemp() / "none"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield made
    made.stop()


@pytest.fixture(autouse=True)
def new_clients(server, monkeypatch):
    """A client keeps the environment that it was made in."""
    storage._client.cache_clear()
    yield
    storage._client.cache_clear()


@pytest.fixture(scope="module")
def folders(server, tmp_path_factory):
    """An image folder of 3 x 20 images in each split, its conversion to a folder, and that to a bucket."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "raw", images=20)
    convert(str(root / "raw"), str(root / "out"), chunk_mb=0.01)
    convert(str(root / "raw"), "s3://bucket/deep/er/", chunk_mb=0.01)
    return root


def from_bucket(cache, place="s3://bucket/deep/er", **settings):
    return streamed(place, cache_dir=str(cache), **settings)


def objects(prefix):
    """As boto3 finds them, without litdata."""
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return {
        item["Key"][len(prefix) :]: client.get_object(Bucket="bucket", Key=item["Key"])["Body"].read()
        for item in found
    }


def test_the_command_writes_to_a_bucket_what_it_writes_to_a_folder(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    where = ["--out", "s3://bucket/by-command", "--chunk_mb", "0.01", "--num_workers", "0"]
    run(["convert", "--data_dir", str(folders / "raw"), *where])
    assert "train: 60 images in" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    ours = {str(p.relative_to(folders / "out")): p.read_bytes() for p in (folders / "out").rglob("*.*")}
    theirs = objects("by-command/")
    assert ours.keys() == theirs.keys()
    same = [name for name in ours if name.endswith(".bin")]
    assert len(same) > 20
    assert all(ours[name] == theirs[name] for name in same)


def test_pixels_probe_and_fingerprint_are_those_of_the_image_folder(folders, tmp_path):
    assert_same_images(from_bucket(tmp_path), plain(folders))
    assert not list(tmp_path.rglob("*.partial"))


def test_training_ends_as_from_a_folder_of_chunks(folders, tmp_path):
    vit = {"img_size": 32, "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
    ends = []
    for place in (str(folders / "out"), "s3://bucket/deep/er"):
        pl.seed_everything(0, verbose=False)
        model = Distiller(Backbone("deit_tiny_patch16_224", timm_kwargs=vit))
        data = StreamedImageFolder(place, cache_dir=str(tmp_path / "cache"), **SMALL)
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_images_without_labels_are_those_of_their_folder(server, tmp_path):
    """By their views, probe set and validation; and a student trains on them as on the folder."""
    photos(tmp_path / "photos", count=6)
    write_images(tmp_path / "labelled", images=3)
    place, val_dir = "s3://bucket/unlabelled", str(tmp_path / "labelled" / "val")
    convert(str(tmp_path / "photos"), place, labels=False, val_dir=val_dir, chunk_mb=0.01)
    small = {name: value for name, value in SMALL.items() if name != "window"} | {"views": 1}
    folder = unlabelled(tmp_path / "photos", val_dir=val_dir, **small)
    data = from_bucket(tmp_path / "cache", place, labels=False, views=1)
    assert (data.num_classes, data.class_names, data.val_classes) == (0, [], folder.val_classes)
    assert data.fingerprint() == folder.fingerprint()
    assert data.views_depend_on() == folder.views_depend_on()  # a teacher's cache is of either
    assert data.probe_set(6).probe_id == folder.probe_set(6).probe_id
    for (a, y, known), (b, z, _) in zip(data.val_dataloader(), folder.val_dataloader(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(y, z)
        assert len(known["index"]) == len(a)
    loader, theirs = data.train_dataloader(), views(folder.train_dataloader(), 0)
    assert {Key(*key): image for key, image in views(loader, 0).items()} == theirs
    assert {target for _, targets in loader for target in targets.tolist()} == {-100}
    with pytest.raises(UserError, match=r"training images of s3://bucket/unlabelled have no classes: set "):
        from_bucket(tmp_path / "cache", place)
    vit = {"img_size": 32, "patch_size": 8, "num_classes": 0, "embed_dim": 16, "depth": 2, "num_heads": 2}
    pl.seed_everything(0, verbose=False)
    student, teacher = (Backbone("deit_tiny_patch16_224", timm_kwargs=vit) for _ in range(2))
    model = Distiller(student, teacher, {"pooled": Term(PooledKD)})
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=from_bucket(tmp_path / "cache", place, labels=False))
    assert {"val/knn1", "val/linear1", "val/effective_rank"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks_share_the_images_out(folders, tmp_path, nodes):
    images = plain(folders, augment={"no_aug": True}).train_dataloader()
    expected = views(images, 0).values()
    shares = []
    for rank in range(2):
        cache = tmp_path / f"node_{rank if nodes == 2 else 0}"
        data = from_bucket(
            cache, rank=rank, world=2, nodes=nodes, batch_size=1, num_workers=2, augment={"no_aug": True}
        )
        shares.append(set(views(data.train_dataloader(), 0).values()))
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(expected)
    assert list(map(len, shares)) == [30, 30]


def test_a_killed_conversion_is_not_taken_for_whole_and_is_begun_anew(folders, tmp_path, monkeypatch):
    place = "s3://bucket/killed"
    killed_at("before the last file", monkeypatch, folders / "raw", place)
    assert "train/index.json" in objects("killed/")
    with pytest.raises(UserError, match=f"{place} holds no finished conversion .dataset.json is missing"):
        from_bucket(tmp_path, place)
    convert(str(folders / "raw"), place, chunk_mb=0.01)
    assert from_bucket(tmp_path, place).fingerprint() == plain(folders).fingerprint()
    before = objects("killed/")
    with pytest.raises(UserError, match=f"--out: {place} holds a finished conversion"):
        convert(str(folders / "raw"), place, chunk_mb=0.01)
    assert objects("killed/") == before


def line_of(doing, *args, **settings):
    with pytest.raises(UserError) as raised:
        doing(*args, **settings)
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_a_wrong_bucket_is_one_line(folders, tmp_path):
    line = line_of(from_bucket, tmp_path, "s3://no-bucket/data")
    assert line.startswith("data.data_dir: s3://no-bucket/data holds no finished conversion")
    line = line_of(convert, str(folders / "raw"), "s3://no-bucket/data")
    assert line.startswith("--out: s3://no-bucket/data cannot be written: ")
    assert "bucket does not exist" in line


@pytest.mark.parametrize(("key", "reason"), [("stranger", "403"), (None, "Unable to locate credentials")])
def test_wrong_credentials_are_one_line(folders, server, tmp_path, monkeypatch, key, reason):
    address = "http://{}:{}/moto-api/reset-auth".format(*server.get_host_and_port())
    if key is None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    requests.post(address, data="0", timeout=10)  # from now on credentials are looked at
    try:
        line = line_of(from_bucket, tmp_path)
        assert line.startswith("data.data_dir: s3://bucket/deep/er/dataset.json cannot be reached: ")
        assert reason in line
        line = line_of(convert, str(folders / "raw"), "s3://bucket/new")
        assert line.startswith("--out: s3://bucket/new/dataset.json cannot be reached: ")
        assert reason in line
    finally:
        requests.post(address, data="inf", timeout=10)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_server_that_is_away_is_one_line(folders, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    data = from_bucket(tmp_path, num_workers=num_workers)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port "discard", where nobody listens
    storage._client.cache_clear()
    line = error_of(data.train_dataloader())
    assert line.startswith("data.data_dir: s3://bucket/deep/er/train/chunk-")
    assert "127.0.0.1:9" in line
    assert "\n" not in line
    line = line_of(from_bucket, tmp_path)
    assert line.startswith("data.data_dir: s3://bucket/deep/er/dataset.json cannot be reached: Could not")
    line = line_of(convert, str(folders / "raw"), "s3://bucket/new")
    assert line.startswith("--out: s3://bucket/new/dataset.json cannot be reached: Could not connect")


def test_a_server_that_comes_back_is_waited_for(folders, server, tmp_path):
    from moto.server import ThreadedMotoServer

    expected = views(plain(folders).train_dataloader(), 0)
    data = from_bucket(tmp_path)
    host, port = server.get_host_and_port()
    server.stop()
    back = ThreadedMotoServer(host, port, verbose=False)  # what it holds is the process's
    timer = threading.Timer(1.5, back.start)
    timer.start()
    try:
        assert views(data.train_dataloader(), 0) == expected
    finally:
        timer.join()
        back.stop()
        server.start()


def test_another_kind_of_storage_is_one_line(folders, tmp_path):
    for scheme in ("r2", "azure", "ftp"):
        place = f"{scheme}://bucket/data"
        line = line_of(from_bucket, tmp_path, place)
        assert line == f"data.data_dir: {place}/dataset.json: s3:// and gs:// are known, {scheme}:// is not"
        line = line_of(convert, str(folders / "raw"), place)
        assert line == f"--out: {place}: s3:// and gs:// are known, {scheme}:// is not"
