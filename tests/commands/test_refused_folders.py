"""What a refused command leaves: nothing that it made, and all that was there before."""


def test_a_refused_command_touches_only_what_it_made(command, trained, tmp_path):
    ckpt, wrong = f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "label=1"  # the model has no classes
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (mine := tmp_path / "mine").mkdir()
    (mine / "sample.log").write_text("of yesterday\n")
    (mine / "notes.log").touch()
    (work := tmp_path / "work").mkdir()
    for out in (elsewhere / "new" / "folder", mine, mine / "below", work / "new", "relative/new"):
        done = command("sample", ckpt, wrong, f"out={out}", cwd=work)
        assert done.status == 1, done.err
        assert "label" in done.err
    assert not list(elsewhere.iterdir())
    assert not list(work.iterdir())
    assert sorted(path.name for path in mine.iterdir()) == ["notes.log", "sample.log"]
    assert (mine / "sample.log").read_text().startswith("of yesterday\n")
