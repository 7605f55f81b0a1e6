"""Shared by all tests: one thread, so that timings and low bits do not depend on the machine's width."""

import torch

torch.set_num_threads(1)
