"""Camera poses from photographs or a video alone: COLMAP's structure from motion, on the CPU, through pycolmap."""
