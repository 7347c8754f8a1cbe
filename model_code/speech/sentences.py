"""Sentences to speak, written for this project: three to four seconds each, in ten languages.

Held-out sentences are spoken in the benchmark and in scores only. `random_sentence` recombines the words of the
training sentences, so that pretraining hears far more combinations than the bank has.
Chinese and Cantonese are written with spaces between words here, for recombination; they are spoken without.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from model_code.errors import InputError

Split = Literal["train", "heldout"]

_UNSPACED = ("zh", "yue")

TRAINING: dict[str, tuple[str, ...]] = {
    "en": (
        "My brother bought a blue boat for the summer by the sea.",
        "We usually move the wooden table before the music begins.",
        "Five brave foxes found a warm place behind the old farm.",
        "Please put the paper cups back on the upper shelf.",
        "She showed us a huge picture of the moon above the roof.",
        "The weather was mild, so we walked through the whole village.",
        "You should choose whichever shoes feel smooth and soft.",
        "Every evening the baker leaves a few rolls for the children.",
        "Nobody knew why the yellow bus stopped at the empty bridge.",
        "Both teams were happy to share the prize in the end.",
        "A small bird above the window woke me up before breakfast.",
        "Would you mind opening the door while I carry the soup?",
        "The chief engineer measured the pressure of the pump twice.",
        "Our teacher joked that Wednesday has far too many letters.",
        "Two tired women waited for the evening train to Boston.",
        "I think the voyage to the island takes about an hour.",
    ),
    "es": (
        "Mi abuela prepara una sopa muy buena los domingos.",
        "El perro blanco corre por la playa todas las mañanas.",
        "Queremos vivir en un pueblo pequeño cerca del bosque.",
        "La profesora llegó tarde porque perdió el autobús.",
        "Hoy vamos a comprar fruta fresca y pan en el mercado.",
        "Un viejo pescador nos contó la historia del faro.",
        "Me gustaría aprender a tocar la guitarra este verano.",
        "Abrimos las ventanas para que entrara el aire limpio.",
        "Tu primo bebe mucha agua después de jugar al fútbol.",
        "El museo guarda joyas y monedas de otra época.",
        "Los niños juegan bajo la lluvia sin ningún miedo.",
        "Pablo y Emma viajan juntos hacia el sur de Perú.",
        "Nunca olvido la música que sonaba en aquella boda.",
        "Esta noche hace frío, ponte el abrigo rojo.",
    ),
    "fr": (
        "Ma sœur voudrait un peu de beurre sur son pain.",
        "Nous avons vu une belle lune bleue au-dessus du toit.",
        "Le petit garçon joue du violon devant sa fenêtre.",
        "Il pleut souvent ici, prenez donc votre parapluie.",
        "Ton oncle achète du fromage au marché du village.",
        "Les oiseaux chantent tôt le matin dans le jardin.",
        "Je voudrais apprendre une chanson avant la fête.",
        "Un bon feu nous réchauffe pendant la longue nuit d'hiver.",
        "La rue est vide, mais la boutique reste ouverte.",
        "Vous pouvez mettre les pommes dans le panier jaune.",
        "On peut prendre le bateau jusqu'au phare blanc.",
        "Mon ami peint des paysages avec beaucoup de patience.",
        "Cette voiture fume beaucoup, il faut la réparer.",
        "Tout le monde applaudit quand le rideau tombe.",
    ),
    "de": (
        "Meine Mutter backt am Samstag einen großen Apfelkuchen.",
        "Wir fahren im Frühling mit dem Boot über den See.",
        "Der kleine Junge möchte heute draußen Fußball spielen.",
        "Bitte bringen Sie mir eine Tasse Kaffee ohne Milch.",
        "Über den Bäumen fliegen fünf braune Vögel nach Süden.",
        "Im Winter bleibt unsere Wohnung trotz des Schnees warm.",
        "Die Schule beginnt morgen erst um halb neun.",
        "Mein Freund übt jeden Abend ein neues Stück auf der Flöte.",
        "Warum öffnest du nicht das Fenster und lüftest ein bisschen?",
        "Auf dem Markt gibt es frisches Obst und schöne Blumen.",
        "Der Zug nach München fährt heute pünktlich ab.",
        "Opa schläft am liebsten vor dem Ofen im Wohnzimmer.",
        "Vielleicht müssen wir noch einmal von vorne anfangen.",
        "Eure Gäste sollten bis zum Abend hier ankommen.",
    ),
    "it": (
        "Mio fratello suona il pianoforte ogni sera dopo cena.",
        "La barca blu passa piano sotto il vecchio ponte.",
        "Vorrei comprare un libro nuovo per il viaggio.",
        "Il nonno prepara la pasta con il pomodoro fresco.",
        "Domani mattina andiamo tutti insieme al mare.",
        "Una bambina bionda corre felice nel giardino.",
        "Puoi chiudere la finestra, per favore? Fa freddo.",
        "Gli amici di Giulia abitano vicino alla stazione.",
        "Questo vino profuma di uva e di erba bagnata.",
        "Ho perso il treno perché pioveva troppo forte.",
        "Il museo apre alle nove e chiude molto tardi.",
        "Abbiamo visto una bella mostra di quadri moderni.",
        "Il gatto bianco dorme sempre sopra il mio cappotto.",
        "Mi piace ascoltare la musica mentre cucino.",
    ),
    "ru": (
        "Моя бабушка печёт вкусные пироги по воскресеньям.",
        "Мы долго шли по узкой улице к старому дому.",
        "Весной в нашем саду поют птицы и цветут яблони.",
        "Пожалуйста, поставьте чашку на белый стол.",
        "Мой друг купил билет на вечерний поезд.",
        "Вчера шёл сильный дождь, и мы остались дома.",
        "Учитель объяснил детям новое правило.",
        "Летом вода в реке бывает очень тёплой.",
        "Маленькая девочка рисует большое синее море.",
        "Утром папа варит кофе и читает газету.",
        "Хочу увидеть высокие горы и голубые озёра.",
        "Этот музыкант умеет играть на пяти инструментах.",
        "Зимой бывает холодно, поэтому надень шубу.",
        "Почему вы опоздали на важную встречу?",
    ),
    "el": (
        "Η μητέρα μου φτιάχνει ψωμί κάθε Σάββατο πρωί.",
        "Το μικρό παιδί παίζει μπάλα μπροστά στο σπίτι.",
        "Θέλω να πάω μια βόλτα δίπλα στη θάλασσα.",
        "Ο παππούς διαβάζει την εφημερίδα στο μπαλκόνι.",
        "Αύριο θα ταξιδέψουμε με το πλοίο για το νησί.",
        "Η φίλη σου τραγουδάει πολύ όμορφα απόψε.",
        "Αγοράσαμε φρέσκα φρούτα από τη λαϊκή αγορά.",
        "Το βράδυ ο ουρανός γεμίζει φωτεινά αστέρια.",
        "Μπορείς να ανοίξεις το παράθυρο, σε παρακαλώ;",
        "Ο δάσκαλος έγραψε μια μεγάλη λέξη στον πίνακα.",
        "Πίνουμε έναν καφέ και μιλάμε για το μέλλον.",
        "Οι γάτες κοιμούνται όλη μέρα πάνω στον τοίχο.",
        "Το τρένο φεύγει από τον σταθμό στις εννέα.",
        "Ποτέ δεν είδα τόσο βαθύ και γαλανό νερό.",
    ),
    "zh": (
        "我 的 朋友 每天 早上 都 去 公园 跑步。",
        "妈妈 买 了 一些 苹果 和 新鲜 的 面包。",
        "明天 下午 我们 一起 去 看 电影 吧。",
        "这 本 书 的 故事 非常 有 意思。",
        "请 把 窗户 打开， 外面 的 空气 很 好。",
        "爷爷 喜欢 坐 在 门口 慢慢 喝茶。",
        "火车 八点 半 从 北京 出发。",
        "小 女孩 在 湖边 画 一 幅 美丽 的 画。",
        "冬天 很 冷， 出门 要 穿 厚 衣服。",
        "他 普通话 说 得 不错， 我 都 听 懂 了。",
        "昨天 晚上 下 了 一 场 大雨。",
        "我们 学校 有 五百 多 名 学生。",
        "老师 让 我们 回家 复习 旧 课文。",
        "路 边 的 小 铺子 卖 包子 和 豆腐。",
    ),
    "yue": (
        "我 今日 同 朋友 去 茶楼 飲茶。",
        "媽媽 買 咗 好多 新鮮 嘅 生果 返 嚟。",
        "聽日 落雨， 你 記得 帶 遮 出街。",
        "呢 間 舖頭 嘅 麵包 又 平 又 好食。",
        "佢 成日 坐 喺 窗口 度 睇書。",
        "我哋 夜晚 去 海邊 行 吓 啦。",
        "細路仔 喺 公園 入面 踢波。",
        "巴士 幾點 鐘 開 去 機場 呀？",
        "老師 話 呢 個 問題 好 簡單。",
        "外面 好 凍， 快 啲 著 返 件 衫。",
        "阿爺 每 朝 都 飲 一 杯 熱 奶茶。",
        "唔該 你 幫 我 打開 道 門。",
        "噚日 我 睇 咗 一 套 好 感人 嘅 戲。",
        "佢 嘅 廣東話 講 得 好 流利。",
    ),
    "ja": (
        "きょうは ともだちと いっしょに こうえんへ いきます。",
        "あさごはんに パンと たまごを たべました。",
        "まどの そとで しろい とりが ないています。",
        "この ほんは とても おもしろいと おもいます。",
        "ははは まいにち あたらしい りょうりを つくります。",
        "でんしゃが くるまで すこし まってください。",
        "なつやすみに うみで たくさん およぎました。",
        "ゆうがた つめたい みずを いっぱい のみました。",
        "せんせいは やさしい こえで なまえを よびました。",
        "ちいさな いぬが ぼくの まえを はしっていく。",
        "ふゆの よるは ほしが とても きれいです。",
        "むずかしい もんだいを ゆっくり かんがえます。",
        "えきの ちかくに ふるい みせが あります。",
        "あしたは びじゅつかんで えを みるつもりです。",
    ),
}

HELDOUT: dict[str, tuple[str, ...]] = {
    "en": (
        "The farmer sold four bags of apples to a very polite woman.",
        "Maybe we could watch a movie about the first pilots.",
        "His voice was soft but the message was perfectly clear.",
        "Over the hill there is a pool where people used to swim.",
        "Keep the room cool and give the puppy plenty of water.",
        "It was foolish to believe such a beautiful promise.",
    ),
    "es": (
        "El vecino compró una bicicleta verde para su hija.",
        "Por favor, apaga la luz antes de salir de casa.",
        "Aquel pájaro azul vuelve siempre al mismo árbol.",
        "Mañana empieza la fiesta más famosa de la ciudad.",
        "Busco un buen libro sobre plantas y flores.",
        "La puerta vieja hace un ruido muy raro.",
    ),
    "fr": (
        "Le boulanger prépare des brioches pour toute la famille.",
        "Une pluie fine tombe sur les feuilles du vieux chêne.",
        "Mes voisins veulent vendre leur maison au bord de l'eau.",
        "Pourquoi ne pas inviter Paul à boire un café?",
        "Elle porte un joli chapeau rouge et une jupe blanche.",
        "Demain, j'irai voir mes cousins à la montagne.",
    ),
    "de": (
        "Die Nachbarn pflanzen im Herbst viele bunte Tulpen.",
        "Kannst du mir bitte das Brot und die Butter geben?",
        "Am Ufer wohnt ein Mann mit fünf schwarzen Pferden.",
        "Heute Nacht war der Mond ungewöhnlich groß und hell.",
        "Unser Hund möchte immer als Erster aus dem Auto.",
        "Schreib doch deiner Tante einen freundlichen Brief.",
    ),
    "it": (
        "La zia ha portato un mazzo di fiori profumati.",
        "Prima di uscire bevo sempre un caffè molto forte.",
        "Il bosco diventa rosso quando arriva l'autunno.",
        "Potete aspettare un momento davanti al portone?",
        "Quel pittore famoso viveva in una piccola casa.",
        "Ogni estate i miei cugini vengono a trovarci.",
    ),
    "ru": (
        "Старый рыбак показал нам свою новую лодку.",
        "Над полем медленно поднимается белый туман.",
        "Помогите мне, пожалуйста, открыть эту дверь.",
        "Осенью листья в парке становятся жёлтыми.",
        "Она пишет письмо своему любимому брату.",
        "В магазине продают свежий хлеб и молоко.",
    ),
    "el": (
        "Ο ψαράς βάφει τη βάρκα του με μπλε χρώμα.",
        "Κάθε καλοκαίρι μαζεύουμε ντομάτες από τον κήπο.",
        "Η βροχή σταμάτησε και βγήκε πάλι ο ήλιος.",
        "Πρέπει να βρούμε ένα ήσυχο μέρος για ύπνο.",
        "Η γιαγιά μάς έλεγε παλιά παραμύθια το βράδυ.",
        "Φέρε μου ένα ποτήρι κρύο νερό, παρακαλώ.",
    ),
    "zh": (
        "秋天 到 了， 树叶 慢慢 变成 红色。",
        "哥哥 在 厨房 里 帮 爸爸 包 饺子。",
        "医生 说 她 需要 多 休息 几 天。",
        "桌子 上面 放 着 一 瓶 黄色 的 花。",
        "请问 去 博物馆 应该 坐 哪 路 车？",
        "孩子们 在 雪地 里 高兴 地 跳舞。",
    ),
    "yue": (
        "佢哋 屋企 門口 有 一 棵 好 大 嘅 樹。",
        "星期日 我 想 同 阿妹 去 買 鞋。",
        "呢 度 嘅 風景 真係 靚 到 不得了。",
        "你 可唔可以 慢慢 再 講 多 一 次？",
        "廚房 入面 傳 出 好 香 嘅 味道。",
        "醫生 叫 佢 每日 早 啲 瞓覺。",
    ),
    "ja": (
        "おとうとは へやで しずかに ピアノを ひいています。",
        "やまの うえから みた けしきを わすれません。",
        "すみませんが ゆうびんきょくは どこですか。",
        "はるになると さくらの はなが さきはじめます。",
        "わたしの そふは むかし ふねに のっていました。",
        "つめたい かぜが ふいて ぼうしが とびました。",
    ),
}


def sentences(language: str, split: Split) -> tuple[str, ...]:
    """The written sentences of one language, as they are spoken."""
    bank = TRAINING if split == "train" else HELDOUT
    if language not in bank:
        raise InputError(f"no sentences in language {language!r}", f"use one of {', '.join(bank)}")
    return tuple(_spoken(sentence, language) for sentence in bank[language])


def draw_sentence(rng: np.random.Generator, language: str, split: Split, count: int = 1) -> str:
    """`count` different sentences of the bank, one after another."""
    bank = sentences(language, split)
    picked = rng.choice(len(bank), size=count, replace=False)
    return ("" if language in _UNSPACED else " ").join(bank[int(index)] for index in picked)


def random_sentence(rng: np.random.Generator, language: str, words: int = 9) -> str:
    """A phonetically rich jumble of `words` words of the training sentences: sound without sense, for pretraining."""
    sentences(language, "train")
    vocabulary = sorted({word.strip("，。？,.?;、") for sentence in TRAINING[language] for word in sentence.split()})
    picked = [vocabulary[int(index)] for index in rng.integers(0, len(vocabulary), words)]
    return _spoken(" ".join(picked) + ".", language)


def _spoken(sentence: str, language: str) -> str:
    return sentence.replace(" ", "") if language in _UNSPACED else sentence
