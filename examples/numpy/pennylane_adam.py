"""PennyLane's `AdamOptimizer`, with onepass inside."""

from functools import partial
from importlib.metadata import version

import numpy as np
import pennylane as qml

import onepass as op
from comparing import median_times, show

# The replacement. `apply_grad` is public; it leaves `args` alone and returns new arrays, so the
# step is taken on copies. Arguments that need no gradient have none, and keep no moments.


class AdamOptimizer(qml.AdamOptimizer):
    def apply_grad(self, grad, args):
        trained = [i for i, arg in enumerate(args) if getattr(arg, "requires_grad", False)]
        if self.accumulation is None:
            self.accumulation = {"fm": {}, "sm": {}, "t": 0}
        new = list(args)
        for i in trained:
            new[i] = args[i].copy()
            for moments in (self.fm, self.sm):
                moments.setdefault(i, np.zeros_like(args[i]))
        params, fm, sm = ([arrays[i] for i in trained] for arrays in (new, self.fm, self.sm))
        settings = {"lr": self.stepsize, "betas": (self.beta1, self.beta2), "eps": self.eps}
        op.kernels.adam(params, list(grad), fm, sm, step=self.t + 1, eps_hat=True, **settings)
        self.accumulation["t"] += 1
        return new


# The comparison: the ground state of the hydrogen molecule, from that of Hartree and Fock.


def hydrogen():
    """Return the molecule's energy as a matrix, for two nuclei that are 1.3228 bohr apart."""
    nuclei = np.array([[0, 0, -0.6614], [0, 0, 0.6614]])
    return qml.matrix(qml.qchem.molecular_hamiltonian(["H", "H"], nuclei)[0], wire_order=range(4))


def energy_of(matrix):
    @qml.qnode(qml.device("default.qubit", wires=4), diff_method="backprop")
    def energy(double, singles, occupied):
        qml.BasisState(occupied, wires=range(4))
        qml.DoubleExcitation(double, wires=[0, 1, 2, 3])
        qml.SingleExcitation(singles[0], wires=[0, 2])
        qml.SingleExcitation(singles[1], wires=[1, 3])
        return qml.expval(qml.Hermitian(matrix, wires=range(4)))

    return energy


def start():
    """Return what the energy is a function of: angles, and the occupied orbitals, not trained."""
    occupied = qml.numpy.array([1, 1, 0, 0], requires_grad=False)
    return [qml.numpy.array(0.1), qml.numpy.array([0.1, -0.1]), occupied]


def fit(optimizer_class, energy, steps=40):
    optimizer, args = optimizer_class(stepsize=0.1), start()
    for _ in range(steps):
        args = optimizer.step(energy, *args)
    return args


def update(optimizer_class, count):
    optimizer, args, grads = optimizer_class(), start(), start()[:2]
    for _ in range(count):
        args = optimizer.apply_grad(grads, args)


def main(rounds=5):
    print(f"PennyLane {version('pennylane')}")
    matrix = hydrogen()
    energy, both = energy_of(matrix), (qml.AdamOptimizer, AdamOptimizer)
    own, ours = (fit(cls, energy) for cls in both)
    difference = max(np.abs(a - b).max() for a, b in zip(own, ours, strict=True))
    fits = (partial(fit, cls, energy) for cls in both)
    loops = (partial(update, cls, 100) for cls in both)
    show("adam", difference, median_times(*fits, *loops, rounds=rounds))
    print(f"energy {energy(*ours):.5f} Ha, lowest {np.linalg.eigvalsh(matrix)[0]:.5f} Ha")


if __name__ == "__main__":
    main()
