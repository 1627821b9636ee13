"""What a result file says of the code that made it."""

import subprocess

from ttom_core.evaluation.results import commit_of


def test_a_changed_clone_is_marked_and_another_result_is_no_change(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert commit_of(tmp_path) == "unknown"
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (tmp_path / "code.py", results / "one.json"):
        path.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "a start")
    clean = commit_of(tmp_path)
    assert len(clean) == 12
    (results / "one.json").write_text("after")
    (results / "new.json").write_text("new")
    assert commit_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("after")
    assert commit_of(tmp_path) == f"{clean}-dirty"
