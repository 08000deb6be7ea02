# SPDX-License-Identifier: Apache-2.0
"""`qam suite report`: tables, learning curves and aggregates of a run matrix beside published ones."""
