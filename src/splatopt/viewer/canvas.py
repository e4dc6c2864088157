"""What is drawn in three dimensions: splats, points, and cameras with their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import viser

from splatopt.core.camera import Camera
from splatopt.data import Capture
from splatopt.data.source import Points
from splatopt.viewer.eyes import Eye, drawn_views, eye_of, frustum_size, looked_at, mean_up, thumbnail
from splatopt.viewer.splats import BrowserSplats

_TRAINED_ON, _HELD_OUT = (90, 120, 160), (230, 120, 40)
_MAX_POINTS = 200_000
_POINT_SIZE = 0.01
_BEHIND, _ABOVE = 1.4, 0.2
"""Where the page begins, in distances of the first camera from what it looks at."""

_MIN_FOV = 0.9
"""Of the page's beginning, vertical, radians."""

_NEAR, _FAR = 0.01, 1000.0


class Canvas:
    """The scene of one server."""

    def __init__(self, server: viser.ViserServer) -> None:
        """Draw nothing yet."""
        self._server = server
        self._splats: viser.GaussianSplatHandle | None = None
        self._cameras: dict[int, viser.CameraFrustumHandle] = {}
        self._root = server.scene.add_frame("/cameras", show_axes=False)

    def start_from(self, up: Sequence[float], position: Sequence[float], target: Sequence[float], fov: float) -> None:
        """Say what is up, and where whoever opens the page stands and looks.

        Args:
            up: Direction.
            position: Where the camera stands.
            target: What it looks at, and what is turned around.
            fov: Vertical field of view, radians.
        """
        self._server.scene.set_up_direction(np.asarray(up, dtype=np.float64))
        start = self._server.initial_camera
        start.position, start.look_at = np.asarray(position), np.asarray(target)
        start.fov, start.near, start.far = fov, _NEAR, _FAR
        for client in self._server.get_clients().values():  # those who came before this was known
            with client.atomic():
                client.camera.up_direction = np.asarray(up, dtype=np.float64)
                client.camera.fov = fov
                client.camera.position, client.camera.look_at = np.asarray(position), np.asarray(target)

    def draw_background(self, color: Sequence[float]) -> None:
        """Draw one color, red, green, blue in [0, 1], behind everything."""
        self._server.scene.set_background_image(np.full((1, 1, 3), color, dtype=np.float64), format="png")

    def start_from_capture(self, capture: Capture) -> None:
        """Say so by a capture: upright as its cameras are, a little behind and above the first that is held out."""
        cameras, up = capture.cameras, mean_up(capture.cameras)
        first = cameras[(capture.split.test or capture.split.train)[0]]
        eye, target = eye_of(first), looked_at(cameras, first)
        offset = np.array(eye.position) - target
        position = target + _BEHIND * offset + _ABOVE * float(np.linalg.norm(offset)) * up
        self.start_from(up.tolist(), position.tolist(), target.tolist(), max(eye.fov, _MIN_FOV))

    def draw_splats(self, splats: BrowserSplats) -> None:
        """Draw Gaussians in place of those from before."""
        parts = (splats.centers, splats.covariances, splats.colors, splats.opacities)
        if self._splats is None:
            self._splats = self._server.scene.add_gaussian_splats("/splats", *parts)
        else:
            self._splats.set_gaussians(*parts)

    def draw_points(self, points: Points) -> None:
        """Draw a capture's points, or some of them."""
        some = slice(None, None, max(1, len(points) // _MAX_POINTS))
        positions = points.positions[some].float().numpy()
        self._server.scene.add_point_cloud("/points", positions, points.colors[some].numpy(), point_size=_POINT_SIZE)

    def draw_cameras(self, capture: Capture, clicked: Callable[[int, viser.ClientHandle], None]) -> None:
        """Draw a capture's cameras, without images at first.

        Args:
            capture: In the frame of the splats.
            clicked: Called with a view, and with the client whose camera is to go there.
        """
        views, size = drawn_views(capture), frustum_size(capture.cameras)
        held_out = set(capture.split.test)
        for view in views:
            eye = eye_of(capture.cameras[view])
            handle = self._server.scene.add_camera_frustum(
                f"/cameras/{view:05d}",
                eye.fov,
                eye.aspect,
                scale=size,
                thickness=0.02 * size,
                color=_HELD_OUT if view in held_out else _TRAINED_ON,
                wxyz=eye.wxyz,
                position=eye.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            handle.on_click(partial(_pass_on, clicked, view))
            self._cameras[view] = handle

    def draw_next_image(self, capture: Capture, waiting: list[int]) -> None:
        """Draw the image of the first of ``waiting`` on its camera, and take it off."""
        view = waiting.pop(0)
        image = thumbnail(capture, view)
        if image is not None:
            self._cameras[view].image = image

    @property
    def views(self) -> list[int]:
        """Those whose cameras are drawn."""
        return list(self._cameras)

    def show_cameras(self, visible: bool) -> None:
        """Show the cameras, or hide them."""
        self._root.visible = visible

    def look_through(self, client: viser.ClientHandle, view: int, camera: Camera) -> None:
        """Have a client look through the camera of a view, whose own drawing would stand in the way."""
        for other, handle in self._cameras.items():
            handle.visible = other != view
        eye: Eye = eye_of(camera)
        with client.atomic():
            client.camera.fov = eye.fov
            client.camera.position = np.array(eye.position)
            client.camera.wxyz = np.array(eye.wxyz)


def _pass_on(
    clicked: Callable[[int, viser.ClientHandle], None],
    view: int,
    event: viser.SceneNodePointerEvent[viser.CameraFrustumHandle],
) -> None:
    if event.client is not None:
        clicked(view, event.client)
