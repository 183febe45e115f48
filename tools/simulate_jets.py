#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "pythia8mc==8.317.2", "fastjet==3.5.2.0"]
# ///
"""Simulate a jet substructure classification (JSC) data set: 5 classes, 16 features.

Follows the recipe of the public "hls4ml LHC jets" sample (Coleman et al., JINST 13 (2018)
T01003; Duarte et al., JINST 13 (2018) P07027), with Pythia 8 alone instead of MadGraph + Pythia:

* pp at 13 TeV, hard 2->2 processes gg, qq, WW, ZZ, tt; W, Z and t decay to hadrons;
  parton pT 1 TeV +- 1 %; Monash tune, with multi-parton interactions, without pile-up;
  W, Z and t on their mass shell, and W and Z (not those of the tops) decay isotropically, as
  undecayed MadGraph bosons do in Pythia: this makes them easier to tell from g and q;
* toy CMS-like detector, |eta| < 3: tracks below 220 GeV, photons in cells of 0.0175, neutral
  hadrons and harder tracks in cells of 0.022, Gaussian energy resolution, no neutrinos;
* the two leading anti-kT R = 0.8 jets, kept where 0.8 < pT < 1.6 TeV; each takes the label of
  its event's process (no matching to the parton, as in the public sample);
* features of the jet groomed by mMDT (soft drop, beta = 0, zcut = 0.1); zlogz and multiplicity
  are those of the ungroomed jet, as in the public sample (where, too, d2_a1_b1 equals d2_b1).

Every (class, chunk) has its own seed, so the result depends on --seed, --jets-per-class and
--chunk, not on --processes.

    uv run tools/simulate_jets.py --jets-per-class 20000 --processes 2 --out jets.npz
"""

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ["g", "q", "w", "z", "t"]
FEATURES = [
    "zlogz",
    "c1_b0_mmdt",
    "c1_b1_mmdt",
    "c1_b2_mmdt",
    "c2_b1_mmdt",
    "c2_b2_mmdt",
    "d2_b1_mmdt",
    "d2_b2_mmdt",
    "d2_a1_b1_mmdt",
    "d2_a1_b2_mmdt",
    "m2_b1_mmdt",
    "m2_b2_mmdt",
    "n2_b1_mmdt",
    "n2_b2_mmdt",
    "mass_mmdt",
    "multiplicity",
]

HADRONIC_W = ["24:onMode = off", "24:onIfAny = 1 2 3 4 5"]
HADRONIC_Z = ["23:onMode = off", "23:onIfAny = 1 2 3 4 5"]
PROCESS = {
    "g": ["HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on"],
    "q": ["HardQCD:qq2qq = on", "HardQCD:gg2qqbar = on", "HardQCD:qqbar2qqbarNew = on"],
    "w": ["WeakDoubleBoson:ffbar2WW = on", *HADRONIC_W],
    "z": ["WeakDoubleBoson:ffbar2gmZgmZ = on", "WeakZ0:gmZmode = 2", *HADRONIC_Z],
    "t": ["Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *HADRONIC_W],
}
COMMON = [
    "Print:quiet = on",
    "Beams:eCM = 13000.",
    "Random:setSeed = on",
    "PhaseSpace:pTHatMin = 990.",
    "PhaseSpace:pTHatMax = 1010.",
    "PhaseSpace:useBreitWigners = off",
    "ParticleDecays:limitTau0 = on",
    "ParticleDecays:tau0Max = 10.",
]  # K0S, Lambda... are stable

JET_R, JET_PT, ZCUT = 0.8, (800.0, 1600.0), 0.1
ETA_MAX, TRACK_PT_MAX, ECAL_CELL, HCAL_CELL = 3.0, 220.0, 0.0175, 0.022
MAX_CONSTITUENTS = 200  # of a groomed jet, in the energy correlators: the hardest ones

# All pairs i < j, ordered by j, and all triples i < j < k, ordered by k: those among the first
# n constituents are a prefix of the table.  The pair (i, j) is at position j (j - 1) / 2 + i.
_N = np.arange(MAX_CONSTITUENTS, dtype=np.int32)
PAIR_I = np.concatenate([_N[:j] for j in _N])
PAIR_J = np.repeat(_N, _N)
TRIPLE_K = np.repeat(_N, _N * (_N - 1) // 2)
TRIPLE_IJ = np.concatenate([np.arange(k * (k - 1) // 2, dtype=np.int32) for k in _N])
TRIPLE_IK = TRIPLE_K * (TRIPLE_K - 1) // 2 + PAIR_I[TRIPLE_IJ]
TRIPLE_JK = TRIPLE_K * (TRIPLE_K - 1) // 2 + PAIR_J[TRIPLE_IJ]


def isotropic_decays(pythia: Any, rng: np.random.Generator) -> Any:  # noqa: ANN401 - Pythia has no types
    """Turn the decay products of every W and Z at random in its rest frame."""
    import pythia8mc

    class Hooks(pythia8mc.UserHooks):
        def canVetoProcessLevel(self) -> bool:  # noqa: N802 - Pythia's name
            return True

        def doVetoProcessLevel(self, process: Any) -> bool:  # noqa: ANN401, N802 - Pythia's name
            for boson in [p for p in process if p.idAbs() in (23, 24) and p.daughter1() > 0]:
                theta = np.arccos(rng.uniform(-1, 1))
                psi, phi = rng.uniform(-np.pi, np.pi, 2)
                for i in (boson.daughter1(), boson.daughter2()):
                    p = process[i].p()
                    p.bstback(boson.p())
                    p.rot(0.0, psi)
                    p.rot(theta, phi)
                    p.bst(boson.p())
                    process[i].p(p)
            return False  # keep the event

    hooks = Hooks()
    pythia.setUserHooksPtr(hooks)
    return hooks  # to be kept alive


def cells(p4: np.ndarray, size: float) -> np.ndarray:
    """Sum the energies of the particles in each (eta, phi) cell; massless cells at the centres."""
    px, py, pz, e = p4.T
    eta = np.arcsinh(pz / np.hypot(px, py))
    phi = np.arctan2(py, px) % (2 * np.pi)
    n_phi = int(2 * np.pi / size)
    width = 2 * np.pi / n_phi
    index = np.floor((eta + ETA_MAX) / size) * n_phi + np.floor(phi / width) % n_phi
    index, inverse = np.unique(index, return_inverse=True)
    e = np.bincount(inverse, weights=e, minlength=len(index))
    eta = (index // n_phi + 0.5) * size - ETA_MAX
    phi = (index % n_phi + 0.5) * width
    pt = e / np.cosh(eta)
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), e], axis=1)


def detect(p4: np.ndarray, charge: np.ndarray, pdg: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Four-momenta of the objects that the toy detector sees."""
    pt = np.hypot(p4[:, 0], p4[:, 1])
    inside = (pt > 0) & (np.abs(p4[:, 2]) < pt * np.sinh(ETA_MAX))
    p4, charge, pdg, pt = p4[inside], charge[inside], pdg[inside], pt[inside]
    lepton = (np.abs(pdg) == 11) | (np.abs(pdg) == 13)
    photon = pdg == 22
    track = lepton | ((charge != 0) & (pt < TRACK_PT_MAX))
    tracks = p4[track]
    ecal = cells(p4[photon], ECAL_CELL)
    hcal = cells(p4[~photon & ~track], HCAL_CELL)
    # Relative resolutions.  The calorimeters' are worse than the bare ones, since what the
    # tracks left there (60 % of the energy) has to be taken away first.
    resolution = np.concatenate(
        [
            np.hypot(0.00025 * pt[track], 0.015),
            np.sqrt(0.027**2 / (ecal[:, 3] / 1.6) + (0.15 * 1.6 / ecal[:, 3]) ** 2 + 0.005**2),
            np.sqrt(1.2**2 / (hcal[:, 3] / 7.0) + 0.05**2),
        ]
    )
    p4 = np.concatenate([tracks, ecal, hcal])
    scale = rng.normal(1.0, resolution)
    return (p4 * scale[:, None])[scale > 0]


def groom(jet: Any) -> tuple[float, np.ndarray]:  # noqa: ANN401 - FastJet has no types
    """mMDT: undo the last C/A steps until one shares its pT by more than zcut."""
    import fastjet

    sequence = fastjet.ClusterSequence(
        list(jet.constituents()), fastjet.JetDefinition(fastjet.cambridge_algorithm, 10.0)
    )
    jet = fastjet.sorted_by_pt(sequence.inclusive_jets())[0]
    a, b = fastjet.PseudoJet(), fastjet.PseudoJet()
    while jet.has_parents(a, b):
        if min(a.pt(), b.pt()) > ZCUT * (a.pt() + b.pt()):
            break
        jet = fastjet.PseudoJet(a if a.pt() > b.pt() else b)
    constituents = fastjet.sorted_by_pt(jet.constituents())
    return jet.m(), np.array([(c.pt(), c.rap(), c.phi()) for c in constituents])


def correlators(pt: np.ndarray, y: np.ndarray, phi: np.ndarray) -> tuple[float, dict[int, tuple[float, ...]]]:
    """Energy correlation functions, normalised by sum(pt).

    Returns e2 at beta = 0, and (e2, e3, 1e3, 2e3) at beta = 1 and 2.
    """
    z = (pt / pt.sum())[:MAX_CONSTITUENTS]
    n = len(z)
    i, j = PAIR_I[: n * (n - 1) // 2], PAIR_J[: n * (n - 1) // 2]
    dphi = np.abs(phi[i] - phi[j])
    theta = np.hypot(y[i] - y[j], np.minimum(dphi, 2 * np.pi - dphi))
    zz = z[i] * z[j]
    m = n * (n - 1) * (n - 2) // 6
    ij = TRIPLE_IJ[:m]
    zzz = zz[ij] * z[TRIPLE_K[:m]]
    a, b, c = theta[ij], theta[TRIPLE_IK[:m]], theta[TRIPLE_JK[:m]]
    low = np.minimum(np.minimum(a, b), c)
    high = np.maximum(np.maximum(a, b), c)
    product = low * (a + b + c - low - high)  # of the two smallest angles
    e = {
        beta: (zz @ theta**beta, zzz @ (product * high) ** beta, zzz @ low**beta, zzz @ product**beta)
        for beta in (1, 2)
    }
    return zz.sum(), e


def features(jet: Any) -> list[float]:  # noqa: ANN401 - FastJet has no types
    """The 16 features, in the order of FEATURES (not finite where grooming left one particle)."""
    e = np.array([c.e() for c in jet.constituents()]) / jet.e()
    mass, groomed = groom(jet)
    e2_b0, ecf = correlators(*groomed.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        e2, e3, e3_v1, e3_v2 = np.array([ecf[1], ecf[2]]).T
        c2, d2, m2, n2 = e3 / e2**2, e3 / e2**3, e3_v1 / e2, e3_v2 / e2**2
        d2_mixed = e3[0] / e2 ** (3.0 / np.array([1, 2]))  # e3 at alpha = 1, e2 at beta = 1, 2
    return [(e * np.log(e)).sum(), e2_b0, *e2, *c2, *d2, *d2_mixed, *m2, *n2, mass, len(e)]


def simulate(task: tuple[str, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """One chunk of jets of one class: features [n, 16]; pT, eta and rank in the event [n, 3]."""
    name, n_jets, seed, detector = task
    import fastjet
    import pythia8mc

    rng = np.random.default_rng(seed)
    pythia = pythia8mc.Pythia("", False)
    for line in COMMON + PROCESS[name] + [f"Random:seed = {seed}"]:
        if not pythia.readString(line):
            raise ValueError(f"Pythia rejects {line!r}")
    hooks = isotropic_decays(pythia, rng) if name in "wz" else None  # noqa: F841
    if not pythia.init():
        raise RuntimeError("Pythia does not start")
    anti_kt = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_R)
    rows, kinematics = [], []
    while len(rows) < n_jets:
        if not pythia.next():
            continue
        particles = np.array(
            [(p.px(), p.py(), p.pz(), p.e(), p.charge(), p.id()) for p in pythia.event if p.isFinal() and p.isVisible()]
        )
        p4 = particles[:, :4]
        if detector:
            p4 = detect(p4, particles[:, 4], particles[:, 5], rng)
        sequence = fastjet.ClusterSequence([fastjet.PseudoJet(*p) for p in p4.tolist()], anti_kt)
        jets = fastjet.sorted_by_pt(sequence.inclusive_jets(JET_PT[0]))[:2]
        for rank, jet in enumerate(jets):
            if jet.pt() < JET_PT[1] and abs(jet.eta()) < ETA_MAX - JET_R:
                row = features(jet)
                if np.isfinite(row).all():
                    rows.append(row)
                    kinematics.append((jet.pt(), jet.eta(), rank))
    return np.array(rows[:n_jets], np.float32), np.array(kinematics[:n_jets], np.float32)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """FastJet prints a banner from C++ in every process."""
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)


def main() -> None:
    """Simulate, drop duplicates, shuffle and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jets-per-class", type=int, default=2000)
    parser.add_argument("--chunk", type=int, default=1000, help="jets of one seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-detector", action="store_true", help="jets of the true particles")
    parser.add_argument("--out", default="jets.npz")
    args = parser.parse_args()

    tasks, labels = [], []
    for start in range(0, args.jets_per_class, args.chunk):  # classes alternate: even progress
        n = min(args.chunk, args.jets_per_class - start)
        for label, name in enumerate(CLASSES):
            # Pythia's seeds go from 1 to 900 000 000.
            seed = args.seed * 1_000_000 + len(tasks) + 1
            tasks.append((name, n, seed, not args.no_detector))
            labels.append(np.full(n, label, np.uint8))
    start = time.time()
    with quiet_stdout(), multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        chunks = list(pool.imap(simulate, tasks))
    jets = np.concatenate([c[0] for c in chunks])
    kinematics = np.concatenate([c[1] for c in chunks])
    y = np.concatenate(labels)

    _, first = np.unique(jets, axis=0, return_index=True)  # no jet twice
    order = np.random.default_rng(args.seed).permutation(np.sort(first))
    np.savez_compressed(
        args.out,
        X=jets[order],
        y=y[order],
        jet_pt_eta_rank=kinematics[order],
        feature_names=np.array(FEATURES),
        class_names=np.array(CLASSES),
    )
    print(
        f"{len(order)} jets ({len(jets) - len(order)} duplicates dropped), "
        f"{dict(zip(CLASSES, np.bincount(y[order]).tolist(), strict=True))}, "
        f"{time.time() - start:.0f} s, {Path(args.out).stat().st_size / 1e6:.2f} MB -> {args.out}"
    )


if __name__ == "__main__":
    main()
