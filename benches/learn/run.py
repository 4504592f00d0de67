#!/usr/bin/env python3
"""Our forest beside scikit-learn, onnxruntime and compiled C: one task, one run, one core of this machine.

The task is scikit-learn's make_classification with 40 features, 12 of them informative, 3 % of labels
flipped; 15,000 rows train, 5,000 test; 100 trees of depth 12. One and the same scikit-learn forest is
walked row by row by onnxruntime (its C++ called through Python, a call's cost included; and in batches,
where it is not), by the C that treelite and tl2cgen write (compiled by gcc -O2, called from C), and by
our flat layout. Then both trainers grow forests of their own, for time and AUC. Every figure is the
fastest of several passes, as other work on a machine only ever adds time.

Installs what it needs from PyPI into target/venv-learn; needs gcc and cargo. `--quick` leaves the C out,
whose compilation takes minutes.
"""
import argparse, json, os, struct, subprocess, sys, time, venv

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, "target", "venv-learn")
OUT = os.path.join(ROOT, "target", "bench-learn")
PACKAGES = ["numpy", "scikit-learn==1.9.1", "onnxruntime==1.31.1", "skl2onnx==1.20.0", "treelite==4.8.1", "tl2cgen==1.0.0"]
TREES, DEPTH, COLUMNS, TRAIN, TEST = 100, 12, 40, 15_000, 5_000
SEED = 3
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def enter_venv():
    """Runs this file again under the interpreter that has the packages."""
    python = os.path.join(VENV, "bin", "python")
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        return
    if not os.path.exists(python):
        venv.create(VENV, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execve(python, [python, os.path.abspath(__file__), *sys.argv[1:]], {**os.environ, **ONE_THREAD})


def write_rows(path, x, y):
    import numpy as np
    rows = np.column_stack([x, y]).astype("<f4")
    with open(path, "wb") as file:
        file.write(struct.pack("<II", *rows.shape))
        file.write(rows.tobytes())


def write_flat(path, forest):
    """A scikit-learn forest in our layout: siblings side by side, thresholds rounded down to f32."""
    import numpy as np
    roots, thresholds, links, values = [], [], [], []
    for estimator in forest.estimators_:
        tree = estimator.tree_
        share = tree.value[:, 0, 1] / tree.value[:, 0, :].sum(axis=1)
        base = len(values)
        roots.append(base)
        where, order = {0: base}, [0]
        for node in order:  # grows while it is walked
            if tree.children_left[node] >= 0:
                at = base + len(order)
                where[tree.children_left[node]], where[tree.children_right[node]] = at, at + 1
                order += [tree.children_left[node], tree.children_right[node]]
        for node in order:
            values.append(share[node])
            if tree.children_left[node] < 0:
                thresholds.append(np.float32(np.inf))
                links.append(where[node])
                continue
            down = np.float32(tree.threshold[node])
            if float(down) > tree.threshold[node]:
                down = np.nextafter(down, np.float32(-np.inf))
            thresholds.append(down)
            links.append(int(tree.feature[node]) << 24 | where[tree.children_left[node]])
    nodes = np.zeros(len(values), dtype=[("threshold", "<f4"), ("link", "<u4"), ("value", "<f4")])
    nodes["threshold"], nodes["link"], nodes["value"] = thresholds, links, values
    with open(path, "wb") as file:
        file.write(struct.pack("<II", len(roots), len(values)))
        file.write(np.array(roots, dtype="<u4").tobytes())
        file.write(nodes.tobytes())


def fastest(passes, work):
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def time_onnxruntime(forest, x):
    import numpy as np, onnxruntime
    from skl2onnx import to_onnx
    model = to_onnx(forest, x[:1], options={id(forest): {"zipmap": False}})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [x[i : i + 1] for i in range(1000)]
    single = fastest(7, lambda: [session.run(["probabilities"], {"X": row}) for row in rows]) / len(rows)
    batch = fastest(7, lambda: session.run(["probabilities"], {"X": x})) / len(x)
    scores = session.run(["probabilities"], {"X": x})[0][:, 1]
    return single * 1e9, batch * 1e9, scores


MAIN_C = """
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "header.h"
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
int main(int argc, char** argv) {
  FILE* file = fopen(argv[1], "rb"); unsigned shape[2]; if (!file || fread(shape, 4, 2, file) != 2) return 1;
  unsigned n = shape[0], columns = shape[1]; float* rows = malloc(4ul * n * columns);
  if (fread(rows, 4, (size_t)n * columns, file) != (size_t)n * columns) return 1;
  union Entry* entry = malloc(sizeof(union Entry) * columns); double best = 1e9, sum = 0; RESULT result[4];
  for (int pass = 0; pass < 15; pass++) {
    double start = now();
    for (unsigned i = 0; i < n; i++) {
      for (unsigned j = 0; j + 1 < columns; j++) entry[j].fvalue = rows[(size_t)i * columns + j];
      predict(entry, 0, result); sum += result[0];
    }
    double seconds = now() - start; if (seconds < best) best = seconds;
  }
  printf("%f %f\\n", best * 1e9 / n, sum); return 0;
}
"""


def time_compiled_c(forest):
    import treelite, tl2cgen
    folder = os.path.join(OUT, "c")
    os.makedirs(folder, exist_ok=True)
    tl2cgen.generate_c_code(treelite.sklearn.import_model(forest), folder, params={"parallel_comp": 50})
    with open(os.path.join(folder, "header.h")) as file:
        header = file.read()
    result = "float" if "float* result" in header else "double"
    with open(os.path.join(folder, "bench.c"), "w") as file:
        file.write(MAIN_C.replace("RESULT", result))
    sources = sorted(name for name in os.listdir(folder) if name.endswith(".c"))
    start = time.perf_counter()
    objects = []
    for source in sources:
        subprocess.run(["gcc", "-O2", "-march=native", "-c", source, "-o", source[:-2] + ".o"], cwd=folder, check=True)
        objects.append(source[:-2] + ".o")
    subprocess.run(["gcc", *objects, "-lm", "-o", "bench"], cwd=folder, check=True)
    compiled = time.perf_counter() - start
    answer = subprocess.run(["./bench", os.path.join(OUT, "test.bin")], cwd=folder, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[0]), compiled


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="without the compiled C")
    arguments.add_argument("--ours", default=os.path.join(ROOT, "target/release/examples/forest"), help="our side")
    arguments = arguments.parse_args()
    enter_venv()
    import numpy as np
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    os.makedirs(OUT, exist_ok=True)
    x, y = make_classification(TRAIN + TEST, COLUMNS, n_informative=12, n_redundant=8, flip_y=0.03, random_state=SEED)
    x = x.astype(np.float32)
    train, test, y_train, y_test = x[:TRAIN], x[TRAIN:], y[:TRAIN], y[TRAIN:]
    write_rows(os.path.join(OUT, "train.bin"), train, y_train)
    write_rows(os.path.join(OUT, "test.bin"), test, y_test)
    forest = RandomForestClassifier(TREES, max_depth=DEPTH, n_jobs=1, random_state=SEED)
    sklearn_s = fastest(2, lambda: forest.fit(train, y_train))
    theirs = forest.predict_proba(test)[:, 1]
    write_flat(os.path.join(OUT, "theirs.forest"), forest)
    answer = subprocess.run([arguments.ours, OUT], check=True, capture_output=True, text=True)
    ours = json.loads(answer.stdout)
    scores = {name: np.fromfile(os.path.join(OUT, f"{name}.scores"), dtype="<f4") for name in ("ours", "theirs")}
    single, batch, onnx_scores = time_onnxruntime(forest, test)
    row = ours["their_row_ns"]
    auc = {"ours": roc_auc_score(y_test, scores["ours"]), "theirs": roc_auc_score(y_test, theirs)}
    lines = [
        ("same forest, nodes", f"{ours['their_nodes']}"),
        ("largest difference to scikit-learn, 5,000 rows", f"{np.abs(scores['theirs'] - theirs).max():.1e} (aim 1e-6)"),
        ("onnxruntime's largest difference", f"{np.abs(onnx_scores - theirs).max():.1e}"),
        ("one row, ours", f"{row / 1000:.2f} us (aim 1.5)"),
        ("one row, onnxruntime", f"{single / 1000:.1f} us: {single / row:.1f} x ours (aim 10)"),
        ("a row of a batch of 5,000, onnxruntime", f"{batch / 1000:.1f} us: {batch / row:.1f} x our single row"),
    ]
    if not arguments.quick:
        c, compiled = time_compiled_c(forest)
        lines.append(("one row, C of tl2cgen, gcc -O2", f"{c / 1000:.2f} us: {c / row:.1f} x ours (aim 3); {compiled:.0f} s to compile"))
    lines += [
        ("training 15,000 x 40, scikit-learn", f"{sklearn_s:.2f} s"),
        ("training 15,000 x 40, ours", f"{ours['train_s']:.2f} s: 1/{sklearn_s / ours['train_s']:.1f} of it (aim 4 s)"),
        ("AUC, scikit-learn and ours", f"{auc['theirs']:.4f} and {auc['ours']:.4f}, apart {abs(auc['ours'] - auc['theirs']):.4f} (aim .005)"),
        ("three trainings under one seed", "byte-identical" if ours["identical"] else "DIFFER"),
        ("load of the machine", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {figure}" for name, figure in lines))


if __name__ == "__main__":
    main()
