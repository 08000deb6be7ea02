# SPDX-License-Identifier: Apache-2.0
"""What the parts owe each other: robot interface, transition, dataset, policy artifact, errors."""
