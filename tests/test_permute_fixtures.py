"""Every way a text can name an image, one line each: kind, text, answer, order of the images -> what it must become.

Orders are written as in the notes of the schema: 0-based, slot j shows old image sigma[j]. `=` means unchanged, a line
in REFUSED must raise Refused. Texts without `<image>` get their placeholders in front.
"""
import pytest

from perl.permute import Refused, Sample, inverse, permute

R, X, V, O, S = "references", "index", "invariant", "options", "sequence"
TF = " True or false?\n(A) True\n(B) False"
DREAM = "Here are there images: <image> <image> <image>. If image {} is the reference image, which image of the other two " \
        "is more similar to the reference image?\nOptions:\n(A) Image {}\n(B) Image {}"

# kind, question, answer, sigma, question after, answer after
EXACT = [
    # --- the ten worked examples (the ninth is in REFUSED)
    (R, "<image> <image> The left image shows a dog facing left." + TF, "A", (1, 0),
     "<image> <image> The right image shows a dog facing left." + TF, "A"),
    (R, DREAM.format(2, 3, 1), "A", (2, 0, 1), DREAM.format(3, 1, 2), "A"),
    (O, "<image>Which one is different?\nA. <image>\nB. <image>\nC. <image>", "C", (0, 3, 1, 2), "=", "A"),
    (X, "Which image shows a cat? <image><image><image>", "Image 2", (1, 2, 0), "=", "Image 1"),
    (R, "use the first image as the reference image. Which fits?\n(A) the second image\n(B) the third image", "B", (1, 0, 2),
     "use the second image as the reference image. Which fits?\n(A) the first image\n(B) the third image", "B"),
    (R, "<image>\n\nFigure 1\n\n<image>\n\nFigure 2\nAs shown in Figure 1, what is it?", "a cat", (1, 0),
     "<image>\n\nFigure 1\n\n<image>\n\nFigure 2\nAs shown in Figure 2, what is it?", "a cat"),
    (R, "<image_1>\n\nFigure 1\n\n<image_2>\n\nFigure 2\nAs shown in Figure 1, what is it?", "a cat", (1, 0),
     "<image_1>\n\nFigure 1\n\n<image_2>\n\nFigure 2\nAs shown in Figure 2, what is it?", "a cat"),
    (R, "Compare images 1 and 3.", "done", (2, 0, 1), "Compare images 2 and 1.", "done"),
    (X, "第一张图和第三张图哪张有猫？", "第三张", (2, 0, 1), "第二张图和第一张图哪张有猫？", "第一张"),
    (R, "Both images contain exactly two dogs." + TF, "A", (1, 0), "=", "A"),
    # --- numbers
    (R, "What is in image 2?", "a cat", (1, 0), "What is in image 1?", "a cat"),
    (R, "What is in Image #1, and what is in Image #2?", "x", (1, 0), "What is in Image #2, and what is in Image #1?", "x"),
    (R, "Look at (image 1). What is it?", "x", (1, 0), "Look at (image 2). What is it?", "x"),
    (R, "Is <image_2> brighter than <image_1>?", "yes", (1, 0), "Is <image_1> brighter than <image_2>?", "yes"),
    (R, "Is {image#2} brighter than [image1]?", "yes", (2, 0, 1), "Is {image#3} brighter than [image2]?", "yes"),
    (R, "Image-1 shows a cat; image_3 a dog.", "x", (2, 1, 0), "Image-3 shows a cat; image_1 a dog.", "x"),
    (R, "In photo number 2, what is it?", "x", (1, 0), "In photo number 1, what is it?", "x"),
    (R, "Is image one or image two darker?", "x", (1, 0), "Is image two or image one darker?", "x"),
    (R, "Figure 2(b) shows a curve.", "x", (1, 0), "Figure 1(b) shows a curve.", "x"),
    (R, "See Fig. 1 and Fig. 2.", "x", (1, 0), "See Fig. 2 and Fig. 1.", "x"),
    (R, "Does Figure (1) match Figure (3)?", "x", (1, 2, 0), "Does Figure (3) match Figure (2)?", "x"),
    (R, "Figure II is a map, Figure III is not.", "x", (1, 2, 0), "Figure I is a map, Figure II is not.", "x"),
    (R, "Is picture B similar to picture A?", "yes", (1, 0), "Is picture A similar to picture B?", "yes"),
    (R, "Panel (a) is darker than panel (c).", "x", (1, 2, 0), "Panel (c) is darker than panel (b).", "x"),
    (R, "Is IMAGE 2 in colour?", "x", (1, 0), "Is IMAGE 1 in colour?", "x"),
    (R, "In #1 and #2 the cat is asleep.", "x", (1, 0), "In #2 and #1 the cat is asleep.", "x"),
    (R, "Is #1 brighter than #3?", "#3", (2, 0, 1), "Is #2 brighter than #1?", "#1"),
    (R, "Figure $1$ is larger than Figure $2$.", "x", (1, 0), "Figure $2$ is larger than Figure $1$.", "x"),
    (R, "<|image_1|> is dark.", "x", (1, 0), "<|image_2|> is dark.", "x"),
    (R, "Diagram 3 is like diagram 1.", "x", (2, 0, 1), "Diagram 1 is like diagram 2.", "x"),
    (R, "Is graph 2 higher than graph 1?", "x", (1, 0), "Is graph 1 higher than graph 2?", "x"),
    (R, "View 1 shows the front.", "x", (1, 0), "View 2 shows the front.", "x"),
    (R, "Is option 3 like option 1?", "x", (2, 0, 1), "Is option 1 like option 2?", "x"),
    (R, "Animal 1 has a longer beak than animal 2.", "x", (1, 0), "Animal 2 has a longer beak than animal 1.", "x"),
    # --- ordinals
    (R, "The First image is dark." + TF, "A", (1, 0), "The Second image is dark." + TF, "A"),
    (R, "THE FIRST IMAGE is dark.", "x", (2, 0, 1), "THE SECOND IMAGE is dark.", "x"),
    (R, "The 1st and the 3rd photo show cats.", "x", (2, 0, 1), "The 2nd and the 1st photo show cats.", "x"),
    (R, "Which is closer to the first image, the second or the third image?", "the third image", (0, 2, 1),
     "Which is closer to the first image, the third or the second image?", "the second image"),
    (R, "The last image shows a dog.", "x", (2, 1, 0), "The third to last image shows a dog.", "x"),
    (R, "The second to last image shows a dog.", "x", (0, 1, 3, 2), "The last image shows a dog.", "x"),
    (R, "The initial image is red and the final image is blue.", "x", (1, 0),
     "The final image is red and the initial image is blue.", "x"),
    (R, "The tenth image is red.", "x", (9, 1, 2, 3, 4, 5, 6, 7, 8, 0), "The first image is red.", "x"),
    (R, "The penultimate image shows a dog.", "x", (0, 2, 1, 3), "The antepenultimate image shows a dog.", "x"),
    # --- places
    (R, "The left-hand image has more dogs.", "x", (1, 0), "The right-hand image has more dogs.", "x"),
    (R, "The lefthand image has more dogs.", "x", (1, 0), "The righthand image has more dogs.", "x"),
    (R, "The rightmost photo is dark.", "x", (1, 0), "The leftmost photo is dark.", "x"),
    (R, "The image on the left-hand side is dark.", "x", (1, 0), "The image on the right-hand side is dark.", "x"),
    (R, "The picture to the right is dark.", "x", (1, 0), "The picture to the left is dark.", "x"),
    (R, "The top image is dark, the bottom image is not.", "x", (1, 0), "The bottom image is dark, the top image is not.", "x"),
    (R, "Compare the left image, the middle image and the right image.", "x", (2, 0, 1),
     "Compare the middle image, the right image and the left image.", "x"),
    (R, "The left and right images show the same dog." + TF, "B", (1, 0), "The right and left images show the same dog." + TF, "B"),
    (R, "The train in the left image is facing left.", "x", (1, 0), "The train in the right image is facing left.", "x"),
    # --- lists, ranges, sets
    (R, "Do images 1, 2 and 4 match?", "x", (3, 2, 1, 0), "Do images 4, 3 and 1 match?", "x"),
    (R, "Compare image 1 to image 2.", "x", (2, 1, 0), "Compare image 3 to image 2.", "x"),
    (R, "images (1)(3) are dark.", "x", (2, 0, 1), "images (2)(1) are dark.", "x"),
    (R, "Do images 2 through 4 match?", "x", (1, 2, 3, 0), "Do images 1 through 3 match?", "x"),
    (R, "Do images 1-2 match?", "x", (2, 3, 0, 1), "Do images 3-4 match?", "x"),
    (R, "Do pictures A to C match?", "x", (3, 0, 1, 2), "Do pictures B to D match?", "x"),
    (R, "Images 1–4 are dark.", "x", (3, 1, 2, 0), "=", "x"),
    (R, "The second through third images are dark.", "x", (1, 2, 0, 3), "The first through second images are dark.", "x"),
    (R, "The first two images match.", "x", (2, 3, 0, 1), "The last two images match.", "x"),
    (R, "Do the last 3 photos match?", "x", (1, 2, 3, 0), "Do the first 3 photos match?", "x"),
    (R, "The first two images match.", "x", (1, 0, 2), "=", "x"),
    (R, "The first three images match.", "x", (1, 2, 0), "=", "x"),
    # --- the other, one, both
    (R, "One image shows a cat and the other image shows a dog." + TF, "A", (1, 0), "=", "A"),
    (R, "The left image has more dogs than the other image.", "x", (1, 0), "The right image has more dogs than the other image.", "x"),
    (R, "How many images show a cat?", "1", (1, 2, 0), "=", "1"),
    (R, "At least one of the images shows a cat." + TF, "A", (1, 0), "=", "A"),
    # --- options and answers
    (R, "Which image is darker?\n(A) Left\n(B) Right", "A", (1, 0), "Which image is darker?\n(A) Right\n(B) Left", "A"),
    (R, "Which image is darker?\n(A) The first one\n(B) The second one", "A", (1, 0),
     "Which image is darker?\n(A) The second one\n(B) The first one", "A"),
    (R, "Which image is darker? (A) Image 1 (B) Image 2", "B", (1, 0), "Which image is darker? (A) Image 2 (B) Image 1", "B"),
    (R, "How many dogs are in the left image?\nA. 1\nB. 2", "A", (1, 0), "How many dogs are in the right image?\nA. 1\nB. 2", "A"),
    (R, "Which image is darker?", "Image 1 is darker than image 2.", (1, 0), "=", "Image 2 is darker than image 1."),
    (X, "Which image is darker?", "2", (2, 0, 1), "=", "3"),
    (X, "Which image is darker?", "The third image", (2, 0, 1), "=", "The first image"),
    (X, "Which image is darker?", "C", (2, 0, 1), "=", "A"),
    (X, "Which picture is like image 1?", "Image 3", (1, 2, 0), "Which picture is like image 3?", "Image 2"),
    (X, "Which images show a cat?", "(1)(3)", (2, 0, 1), "=", "(2)(1)"),
    (X, "Which images show a cat?", "1 and 3", (2, 0, 1), "=", "2 and 1"),
    (X, "Which image is similar?", "Image 3 is more similar to the reference image.", (2, 0, 1), "=",
     "Image 1 is more similar to the reference image."),
    (X, "哪张图有猫？", "图2", (1, 0), "=", "图1"),
    (X, "哪张图有猫？", "第二张图", (2, 0, 1), "=", "第三张图"),
    (S, "Put the images in chronological order.", "2,1,4,3", (1, 0, 3, 2), "=", "1,2,3,4"),
    (S, "Put the images in chronological order.", "CABD", (1, 0, 3, 2), "=", "DBAC"),
    (S, "Put the images in order.", "2→1→3→4", (3, 0, 1, 2), "=", "3→2→4→1"),
    (S, "Put the images in order.", "[3,1,2]", (2, 0, 1), "=", "[1,2,3]"),
    (S, "Put the images in order.", "Image 2, Image 1, Image 3", (2, 0, 1), "=", "Image 3, Image 2, Image 1"),
    (O, "What comes next? <image> <image>\nA. <image>\nB. <image>", "A", (0, 1, 3, 2), "=", "B"),
    (V, "How many dogs are in all images?", "4", (1, 0), "=", "4"),
    # --- found while trying to break it
    (R, "Among images 1, 2, and 3, which are dark?", "Images 1 and 3", (2, 0, 1),
     "Among images 2, 3, and 1, which are dark?", "Images 2 and 1"),
    (R, "Look at image 1. Is its dog in the other image?", "x", (1, 0), "Look at image 2. Is its dog in the other image?", "x"),
    (R, "The top of the left image is dark.", "x", (1, 0), "The top of the right image is dark.", "x"),
    (R, "The dog on the left of the first image barks.", "x", (1, 0), "The dog on the left of the second image barks.", "x"),
    # --- Chinese
    (R, "图1和图2哪个更亮？", "x", (1, 0), "图2和图1哪个更亮？", "x"),
    (R, "第二幅图中有几只猫？", "3", (2, 0, 1), "第三幅图中有几只猫？", "3"),
    (R, "左图中的人在做什么？", "x", (1, 0), "右图中的人在做什么？", "x"),
    (R, "左边的图片里有什么？", "x", (1, 0), "右边的图片里有什么？", "x"),
    (R, "如图（1）所示，图（2）中的角是多少？", "x", (1, 0), "如图（2）所示，图（1）中的角是多少？", "x"),
    (R, "图①和图③相同吗？", "x", (2, 0, 1), "图②和图①相同吗？", "x"),
    (R, "图甲比图乙亮吗？", "x", (1, 0), "图乙比图甲亮吗？", "x"),
    (R, "最后一张图是什么？", "x", (2, 1, 0), "倒数第三张图是什么？", "x"),
    (R, "图片1里有猫吗？", "x", (1, 0), "图片2里有猫吗？", "x"),
    (R, "两张图都有猫吗？", "有", (1, 0), "=", "有"),
    (R, "图A是什么？图B呢？", "x", (1, 0), "图B是什么？图A呢？", "x"),
    (R, "图1和图片3是同一个地方吗？", "x", (2, 0, 1), "图2和图片1是同一个地方吗？", "x"),
    (R, "前两张图相同吗？", "x", (2, 3, 0, 1), "后两张图相同吗？", "x"),
    (R, "图1到图3都有猫吗？", "x", (3, 0, 1, 2), "图2到图4都有猫吗？", "x"),
    (R, "中间的图和左边的图一样吗？", "x", (1, 0, 2), "左边的图和中间的图一样吗？", "x"),
    (R, "第2张图和第10张图一样吗？", "x", (1, 0, 2, 3, 4, 5, 6, 7, 8, 9), "第1张图和第10张图一样吗？", "x"),
    (R, "第1至第3张图都有树吗？", "x", (3, 0, 1, 2), "第2至第4张图都有树吗？", "x"),
    (R, "首图是什么？", "x", (1, 0), "末图是什么？", "x"),
    (R, "哪张图更亮？\nA. 第一张图\nB. 第二张图", "A", (1, 0), "哪张图更亮？\nA. 第二张图\nB. 第一张图", "A"),
    # --- lists that are none, numbers and figures that name no image (once rewritten)
    (R, "Which figure is printed on the shirt in image 1?\nA. 1\nB. 2", "A", (1, 0),
     "Which figure is printed on the shirt in image 2?\nA. 1\nB. 2", "A"),
    (R, "Which figure is written on the door in the left image?", "2", (1, 0),
     "Which figure is written on the door in the right image?", "2"),
    (R, "The first image shows a man turning left, the second image shows him turning right.", "True", (1, 0),
     "The second image shows a man turning left, the first image shows him turning right.", "True"),
    (R, "The dog in the first image faces left and the second image shows a cat.", "True", (1, 0),
     "The dog in the second image faces left and the first image shows a cat.", "True"),
    (R, "In the first image a woman wears a black top and the second image shows a skirt.", "True", (1, 0),
     "In the second image a woman wears a black top and the first image shows a skirt.", "True"),
    (R, "In image B, a red car is parked. What colour is the car in image A?", "blue", (1, 0),
     "In image A, a red car is parked. What colour is the car in image B?", "blue"),
    (R, "In picture C, a tiger sleeps. Does it sleep in picture A?", "no", (2, 0, 1),
     "In picture A, a tiger sleeps. Does it sleep in picture B?", "no"),
    (R, "In image one, two are asleep and one is awake. How many cats are in image two?", "4", (1, 0),
     "In image two, two are asleep and one is awake. How many cats are in image one?", "4"),
    (R, "两张图中都出现的是哪个数字？\nA. 1\nB. 2", "A", (1, 0), "=", "A"),
    (R, "第一张图中骰子朝上的是哪个数字？\nA. 1\nB. 2", "B", (1, 0), "第二张图中骰子朝上的是哪个数字？\nA. 1\nB. 2", "B"),
    (R, "图1的钟面上时针指向哪个数？", "2", (2, 0, 1), "图2的钟面上时针指向哪个数？", "2"),
    # --- words that only look like pointing, or like a step
    (X, "Which of the following images shows a cat?", "Image 2", (1, 2, 0), "=", "Image 1"),
    (V, "以下图片中共有几只猫？", "3", (1, 0), "=", "3"),
    (R, "图2中的人在做什么？", "跑步", (1, 0), "图1中的人在做什么？", "跑步"),
]

# texts that hold a look-alike and nothing to rewrite: must come back as they are
LOOK_ALIKE = [
    "The dog is facing left.", "A man raises his left arm.", "The arrow points to the right.", "She broke her left leg.",
    "Figure out how many dogs there are in both images.", "There is a figure of a man in one image.", "A woman is figure skating.",
    "Each file is an image 2 MB in size.", "Is it image 2 MB large?", "In the first place, both images show dogs.",
    "The second row is empty in both images.", "The person in the second column waves.", "A fig tree stands in one image.",
    r"If \angle 1 = 40 degrees, what is \angle 2?", "There is a right angle in each image.", "Each image shows a right triangle.",
    "All right, do both images show a dog?", "The dogs are next to each other.", "Two people swim to the right.",
    "One image shows a man standing on the left.", "A second image shows another dog, like one image.",
    "如图所示，两张图中共有几只猫？", "图形的面积是多少？", "地图上有几个城市？", "图书在桌上吗？", "图中有什么？",
    "如图三角形ABC是等边三角形吗？", "如图四边形ABCD的面积是多少？", "每张图中各有几个人？", "请画一只猫。", "人物向左看吗？",
    "There are 2 birds, 3 maps and a graph.", "Both players wear a number one shirt.", "A bird's eye view of a city is in each photo.",
    "第二个人是谁？", "第一张桌子是什么颜色？", "两张图一样吗？",
]

# could be said, in a way that is not offered: kind, question, answer, order
GIVEN_UP = [
    (R, "The following image shows a dog.", "x", (1, 0)),
    (R, "Diagram 3 and chart 1 agree.", "x", (2, 0, 1)),               # two counts, or one?
    (R, "Do images 2 through 4 match?", "x", (1, 0, 2, 3)),            # "images 1, 2 and 3" could not be undone
    (R, "The first two images match.", "x", (0, 2, 1, 3)),
    (R, "The last image is dark, the penultimate is not.", "x", (0, 2, 1)),
    (R, "Is the first image like the last image?", "x", (1, 0)),       # of two, "the last" is the second
    (R, "The central image is darker than the left image.", "x", (1, 0, 2)),
    (R, "Which way does the man look?\n(A) Left\n(B) Right", "A", (1, 0)),
    (S, "Which order is right?\n(A) 1,2,3\n(B) 3,1,2", "B", (2, 0, 1)),
    (O, "Is image B like image A?\nA. <image>\nB. <image>\nC. <image>", "C", (1, 2, 0)),
    (R, "The picture on your left is dark.", "x", (1, 0)),
    (R, "Is image 1 through image 3 dark?", "x", (1, 2, 0, 3)),
    (R, "The right-hand side image is dark.", "x", (1, 0)),
    (R, "The first of the two images is dark.", "x", (1, 0)),
    (R, "The opening image is dark.", "x", (1, 0, 2)),
    (R, "左侧的图是什么？", "x", (1, 0, 2)),                              # "中间的图" would come back as "左边的图"
    (R, "右侧的人在笑吗？", "x", (1, 0)),
    (R, "前两张图相同吗？", "x", (0, 2, 1, 3)),
    # --- subsets, counting from the end, numbered options, pictures in images, letters in the text (once rewritten, or left)
    (R, "Which images show a cat?\nA. 1 only\nB. 2 only\nC. Both\nD. Neither", "B", (1, 0)),
    (R, "In which image can a cat be seen?\nA. Only 1\nB. Only 2\nC. Both 1 and 2", "A", (1, 0)),
    (R, "Which image is darker?\n1. The left image\n2. The right image", "2", (1, 0)),
    (X, "Which image is darker?\n(1) the left image\n(2) the right image", "2", (1, 0)),
    (R, "Which image caption is right?\n(1) Image 1 shows a dog.\n(2) Image 2 shows a cat.", "1", (1, 0)),
    (R, "What does the second image from the right show?", "a bus", (3, 0, 1, 2)),
    (R, "What does the second picture from the end show?", "a bus", (3, 0, 1, 2)),
    (R, "Counting backwards, what does the second image show?", "a bus", (3, 0, 1, 2)),
    (R, "In the first image with a dog, how many people are there?", "2", (2, 0, 1)),
    (R, "Does the second image that shows a dog also show a cat?", "yes", (3, 0, 1, 2)),
    (R, "What is the weather in the last image showing a red car?", "rainy", (2, 0, 1)),
    (R, "In image 1, is the picture on the left larger than the mirror?", "yes", (1, 0)),
    (R, "In the second image, the first picture on the wall is crooked.", "true", (1, 0)),
    (R, "Is the photo on the right in image 2 framed?", "yes", (1, 0)),
    (R, "Is screenshot 1 darker than screenshot 2?", "yes", (1, 0)),
    (R, "In screenshot 2, which button is highlighted?", "Save", (2, 0, 1)),
    (R, "Does illustration 3 show the same tool as illustration 1?", "yes", (2, 0, 1)),
    (R, "Does sketch B show the same house as sketch A?", "yes", (1, 0)),
    (R, "The topmost image shows a beach.", "True", (1, 0)),
    (R, "Do the odd-numbered images show cats?", "yes", (1, 0, 3, 2)),
    (R, "Do the two outer images show the same dog?", "yes", (2, 3, 0, 1)),
    (R, "Does the first half of the images show cats only?", "yes", (2, 3, 0, 1)),
    (R, "Does the first row of pictures show cats only?", "yes", (2, 3, 0, 1)),
    (R, "Is the image at index 0 darker than the image at index 1?", "yes", (1, 0)),
    (R, "Does the image in second place show a cat?", "yes", (1, 0)),
    (R, "What is shown in the image in position 2?", "a cat", (2, 0, 1)),
    (R, "What does the image between image 1 and image 3 show?", "a cat", (2, 0, 1)),
    (R, "What does the image at the end show?", "a cat", (2, 0, 1)),
    (R, "What does the closing image show?", "a cat", (2, 0, 1)),
    (R, "Do the images at both ends match?", "yes", (2, 0, 1)),
    (R, "How many dogs are there in the two images respectively?", "2 and 3", (1, 0)),
    (V, "How many dogs are in each of the images, respectively?", "1, 2, 3", (2, 0, 1)),
    (R, "Does B show the same dog as A?", "yes", (1, 0)),
    (R, "In A there is a dog; in B there is a cat. True or false?", "true", (1, 0)),
    (X, "Which of B and C matches A?", "C", (1, 2, 0)),
    (X, "Which of 2 and 3 is most like 1?", "3", (1, 2, 0)),
    (X, "Which image is most similar to A?", "C", (1, 2, 0)),
    (O, "Options B and C are mirror images of each other. Which option is different?\nA. <image>\nB. <image>\nC. <image>", "A", (1, 2, 0)),
    (O, "B and C show the same cube. Which one shows another cube?\nA. <image>\nB. <image>\nC. <image>", "A", (1, 2, 0)),
    (R, "A图和B图中的车是同一辆吗？", "是", (1, 0)),
    (R, "甲图中的猫比乙图中的猫大吗？", "是", (1, 0)),
    (R, "2号图中有几个人？", "3", (2, 0, 1)),
    (R, "上方的图片里有狗吗？", "有", (1, 0)),
    (R, "从后往前数，第二张图里有什么？", "猫", (3, 0, 1, 2)),
    (R, "从下往上数第一张图是什么？", "猫", (2, 0, 1)),
    (R, "第一张有狗的图里有几个人？", "2", (2, 0, 1)),
    (R, "头两张图相同吗？", "是", (2, 3, 0, 1)),
    (R, "两张图分别是什么季节？", "春天和秋天", (1, 0)),
]

# refused whatever the order of the images: question, number of images
REFUSED = [
    # a name in a form of its own, beside one that is known
    ("Is image 1 darker than 2?", 2), ("Is the cat in image 1 the same as in 2?", 2), ("Is it in image 1, or in 2?", 2),
    ("How does image 1 differ from 2?", 2), ("Compare image 1 with 2.", 2), ("Is image 1, compared with 2, darker?", 2),
    ("Is it in image 1 and also in number 2?", 2), ("Are there more dogs in picture one than in two?", 2),
    ("Picture A shows the same dog as B.", 2), ("A dog is in image 1 and not 2.", 2),
    ("The images on the right and left show dogs.", 2), ("Dogs are in the images on the left and right.", 2),
    ("Dogs are in the images at left and right.", 2), ("Is the left image larger than that on the right?", 2),
    ("Are the dogs of the right image larger than those in the left?", 2),
    ("第一张图比第二张亮吗？", 2), ("图1比2亮吗？", 2), ("左图比右边亮吗？", 2), ("图A比B亮吗？", 2), ("图1里的猫在2里吗？", 2),
    ("The left picture frame is made of wood.", 2), ("The second photo album is open.", 2), ("Is the first photo booth red?", 2),
    ("Image no 2 is blue, no 1 is red.", 2), ("Number 1 is darker than image 2.", 2),
    ("A \1 in image 1.", 2),
    ("The following frames show a man. What happens after the second frame?", 3),
    ("Put the images in chronological order: is image 1 the first?", 2),
    ("The images tell a story. What is in image 2?", 3), ("What happens next?", 2), ("Step 1 is shown in image 1.", 2),
    ("Before: <image> After: <image> What is different?", 2), ("Image 1: <image> Image 2: <image> What is in image 1?", 2),
    ("Image A: <image>\nImage B: <image>\nIs image A dark?", 2), ("The first image: <image> The second image: <image> Is it dark?", 2),
    ("<image> is the reference image. <image> Is it similar?", 2), ("Front view <image> Side view <image> How tall is it?", 2),
    ("A photo taken in 1990: <image> A photo taken in 2020: <image> What is it?", 2),
    ("<image>\nA dog.\n<image>\nA cat.\nWhich is correct?", 2), ("In <image> there is a dog, while in <image> there is a cat.", 2),
    ("What does the previous image show?", 2), ("What does the next image show?", 2), ("Is the other image dark?", 2),
    ("Is image 1 darker than the other image?", 3), ("Does this image show a dog?", 2), ("What is in the image above?", 2),
    ("User: <image> what is it?\nAssistant: a dog\nUser: <image> and here?", 2), ("Q: What is in image 1? A: a dog\nQ: What is in image 2?", 2),
    ("The second of the two outdoor images shows a dog.", 3), ("The second outdoor image shows a dog.", 3),
    ("The second image in the first row is dark.", 4), ("The top left image is dark.", 4), ("What is in image 7?", 2),
    ("The left image is dark.", 4), ("The former image is dark, the latter is not.", 2), ("The dog on the left is black.", 2),
    ("The left dog is bigger than the right dog.", 2), ("The first one is dark.", 2), ("In image 1 the cat sleeps. The first is dark.", 2),
    ("Das erste Bild zeigt einen Hund und das zweite Bild ist dunkel.", 2), ("La première image est dans la maison.", 2),
    ("1枚目の画像は何ですか？", 2), ("첫 번째 이미지는 무엇입니까?", 2), ("На левом фото собака.", 2), ("الصورة الأولى", 2),
    ("La primera imagen muestra una casa con un perro.", 2), ("前一张图是什么？", 2), ("按先后顺序，图1是什么？", 2), ("另一张图是什么？", 2),
    ("The final image of the video is dark.", 2), ("What no longer is there in image 2?", 2), ("Person 2 in image 1 is tall.", 2),
    ("The second-to-last image is dark.", 2), ("Option 1 is like image 2.", 2), ("Is photo a like photo b?", 2),
    ("Left shows a dog, right shows a cat.", 2), ("The second pair of images is dark.", 4),
    ("Is img_1.png darker than img_2.png?", 2), ("Is pic. 1 darker?", 2), ("The eleventh image is dark.", 12), ("The 12th image is dark.", 12),
    ("In the first image there is a cat, while in the second there is a dog.", 2), ("The left image is darker than the right.", 2),
    ("The first image shows two dogs, the second three.", 2), ("Is image 1 (left) brighter than image 2 (right)?", 2),
    ("Which image, 1 or 2, is darker?", 2), ("How does the right picture differ from the left one?", 2),
    ("The next to last image is dark.", 4), ("The image labeled 2 is dark.", 2), ("In image 2 dogs play.", 2),
    ("Compare the two images 1 and 2.", 3), ("The first image shows a cat, and a second image shows a dog.", 2),
    ("There is a dog in a left image.", 2), ("Which is different?\n(A) left\n(B) right", 2), ("Which is it?\n(A) 1\n(B) 2", 2),
    ("图1是猫，图2是狗，前者更大吗？", 2), ("左边更亮吗？", 2), ("第一个和第二个一样吗？", 2), ("如下图所示，图中有什么？", 2),
    ("In image 1, chart 2 is higher.", 2), ("Each image shows two graphs. Is graph 1 higher?", 2), ("Is animal 1 in both images?", 2),
    ("The player wearing #1 is in the left image.", 2), ("Is the #1 song popular?", 2), ("What is in frame 2?", 2),
    ("From image 1 to image 3 the dog grows.", 3), ("From images 1 to 3 the dog grows.", 3),
    ("Images 1-3, respectively, show a dog, a cat and a cow.", 3), ("The first and last two images are dark.", 4),
    ("images 1, 3-4 are dark", 4), ("The two leftmost images are dark.", 3), ("The first few images are dark.", 4),
    ("Is A darker than B?", 2), ("Is 1 darker than 2?", 2), ("The picture I like shows a dog.", 2),
    ("The right image shows two pandas and the one on the left sits.", 2), ("the image of lucky number seven is dark", 7),
    ("Bild 1 zeigt einen Hund.", 2), ("Qué hay en la imagen 2", 2), ("L'image de gauche montre un chat.", 2),
    ("下面的图中有什么？", 2), ("第十二张图是什么？", 12), ("图Ⅰ是什么？", 2), ("The image in the middle is dark.", 3), ("地图1是哪里？", 2), ("从图1到图2，猫的数量增加了吗？", 2), ("参考图是哪里？", 2),
    ("One image is dark, and its dog is in the second image.", 2), ("1. <image>\n2. <image>\nIs image 1 dark?", 2),
]


def sample(kind: str, question: str, answer: str, n: int) -> Sample:
    if "<image>" not in question and not question.startswith("<image_1>"):
        question = "<image>" * n + "\n" + question
    stem = len(question.split("\nA. <image>")[0].split("<image>")) - 1 if kind == O else 0
    return Sample("x", tuple(f"{k}.png" for k in range(n)), question, answer, kind, stem)


@pytest.mark.parametrize("kind, question, answer, sigma, question_after, answer_after", EXACT)
def test_exact(kind, question, answer, sigma, question_after, answer_after):
    n = len(sigma)
    x = sample(kind, question, answer, n)
    y = permute(x, sigma)
    assert y.question == (x.question if question_after == "=" else sample(kind, question_after, answer, n).question)
    assert (y.answer, y.images) == (answer_after, tuple(x.images[old] for old in sigma))
    assert permute(y, inverse(sigma)) == x


@pytest.mark.parametrize("text", LOOK_ALIKE)
def test_look_alike_stays(text):
    x = sample(R, text, "x", 2)
    assert permute(x, (1, 0)).question == x.question


@pytest.mark.parametrize("text, n", REFUSED)
def test_refused(text, n):
    with pytest.raises(Refused) as refusal:
        permute(sample(R, text, "x", n), tuple(reversed(range(n))))
    assert refusal.value.reason


@pytest.mark.parametrize("kind, question, answer, sigma", GIVEN_UP)
def test_given_up(kind, question, answer, sigma):
    with pytest.raises(Refused):
        permute(sample(kind, question, answer, len(sigma)), sigma)
