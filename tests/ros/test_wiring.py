# SPDX-License-Identifier: Apache-2.0
"""What a node does with messages and callbacks that fail."""

import pytest


@pytest.fixture
def told(graph):
    """Function that lets a subscription fail once, and gives what it received after that."""
    from std_msgs.msg import Bool

    from qam_ros.nodes import qos
    from qam_ros.nodes.ros import Wiring

    def tell(**settings):
        received = []

        def callback(message):
            if message.data:
                raise ValueError("nobody expected this")
            received.append(message.data)

        wiring = Wiring(graph.node, **settings)
        wiring.subscription(Bool, "estop", callback, qos.STOP_IN)
        publisher = graph.publisher(Bool, "estop", qos.STOP_IN, peers=1)
        for pressed in (True, False):
            publisher.publish(Bool(data=pressed))
        graph.wait(lambda: received, 5.0)
        return wiring, received

    return tell


def test_an_error_in_a_callback_is_kept_and_the_next_message_is_handled(told):
    wiring, received = told(keep_alive=True)
    assert received == [False]
    assert wiring.errors == 1
    assert wiring.problem == "topic 'estop': ValueError: nobody expected this"


def test_nodes_that_are_restarted_end_with_the_error(told):
    with pytest.raises(ValueError, match="nobody expected this"):
        told()
